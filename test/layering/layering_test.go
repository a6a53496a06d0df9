package layering

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

const module = "cairn"

type goPackage struct {
	Dir, ImportPath, Name string
	GoFiles, CgoFiles     []string
	IgnoredGoFiles        []string
	Imports               []string
}

// rel is the package's path below the module; the module's root is ".".
func (p *goPackage) rel() string {
	if p.ImportPath == module {
		return "."
	}
	return strings.TrimPrefix(p.ImportPath, module+"/")
}

// isTest tells packages that only tests use: those below test, and conformance suites like storage/storagetest.
func (p *goPackage) isTest() bool {
	return p.rel() == "test" || strings.HasPrefix(p.rel(), "test/") || testPackage(p.rel())
}

func testPackage(rel string) bool {
	base := rel[strings.LastIndexByte(rel, '/')+1:]
	return base != "test" && strings.HasSuffix(base, "test")
}

func root(t *testing.T) string {
	t.Helper()
	dir, err := filepath.Abs(filepath.Join("..", ".."))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(filepath.Join(dir, "go.mod")); err != nil {
		t.Fatal(err)
	}
	return dir
}

func list(t *testing.T) []*goPackage {
	t.Helper()
	cmd := exec.Command("go", "list", "-e", "-json=Dir,ImportPath,Name,GoFiles,CgoFiles,IgnoredGoFiles,Imports", "./...")
	cmd.Dir = root(t)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("go list: %v\n%s", err, stderr.Bytes())
	}
	var all []*goPackage
	for dec := json.NewDecoder(bytes.NewReader(out)); ; {
		p := new(goPackage)
		if err := dec.Decode(p); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			t.Fatal(err)
		}
		if len(p.GoFiles)+len(p.CgoFiles) > 0 { // not only tests
			all = append(all, p)
		}
	}
	if len(all) < 10 {
		t.Fatalf("go list found only %d packages", len(all))
	}
	return all
}

func TestFloors(t *testing.T) {
	table := floors()
	for _, p := range list(t) {
		if p.isTest() {
			continue
		}
		floor, ok := table[p.rel()]
		if !ok {
			t.Errorf("package %s has no floor: enter it in test/layering/floors.go", p.rel())
			continue
		}
		for _, imp := range p.Imports {
			path, own := strings.CutPrefix(imp, module+"/")
			if !own {
				continue
			}
			if strings.HasPrefix(path, "test/") || testPackage(path) {
				t.Errorf("%s imports %s: only tests may", p.rel(), path)
			} else if below, ok := table[path]; ok && below >= floor {
				t.Errorf("%s (floor %s) imports %s (floor %s): only lower floors may be imported", p.rel(), floor, path, below)
			}
		}
	}
}

func TestLibraries(t *testing.T) {
	allowed := libraries()
	for _, p := range list(t) {
		if p.isTest() || strings.HasPrefix(p.rel(), "proto/") {
			continue
		}
		for _, imp := range p.Imports {
			for lib, users := range allowed {
				if (imp == lib || strings.HasPrefix(imp, lib+"/") && strings.Contains(lib, ".")) && !slices.Contains(users, p.rel()) {
					t.Errorf("%s imports %s: only %v may (test/layering/floors.go)", p.rel(), imp, users)
				}
			}
		}
		if slices.Contains(pure(), p.rel()) {
			for _, imp := range p.Imports {
				if imp == "time" || strings.HasSuffix(imp, "/rand") || strings.HasSuffix(imp, "/rand/v2") || strings.Contains(imp, "hashicorp/raft") || imp == "os" || imp == "net" {
					t.Errorf("%s imports %s: a state machine must come to the same state on every replica", p.rel(), imp)
				}
			}
		}
	}
}

// file is one parsed Go source file.
type file struct {
	pkg  *goPackage
	name string
	ast  *ast.File
	set  *token.FileSet
}

func (f *file) pos(n ast.Node) string {
	p := f.set.Position(n.Pos())
	return fmt.Sprintf("%s/%s:%d", f.pkg.rel(), f.name, p.Line)
}

// sources parses every file that is neither a test nor generated. The deprecated
// resolution of identifiers within a file is what tells a package's variable from a local one of the same name.
func sources(t *testing.T) []*file {
	t.Helper()
	var all []*file
	for _, p := range list(t) {
		if p.isTest() {
			continue
		}
		for _, name := range slices.Concat(p.GoFiles, p.CgoFiles) {
			set := token.NewFileSet()
			f, err := parser.ParseFile(set, filepath.Join(p.Dir, name), nil, parser.ParseComments)
			if err != nil {
				t.Errorf("%s/%s: %v", p.rel(), name, err)
				continue
			}
			if !ast.IsGenerated(f) {
				all = append(all, &file{p, name, f, set})
			}
		}
	}
	return all
}

func TestFunctionsStayShort(t *testing.T) {
	excused := longFunctions()
	used := map[string]bool{}
	for _, f := range sources(t) {
		for _, d := range f.ast.Decls {
			fn, ok := d.(*ast.FuncDecl)
			if !ok || fn.Body == nil {
				continue
			}
			lines := f.set.Position(fn.End()).Line - f.set.Position(fn.Pos()).Line + 1
			name := f.pkg.rel() + "." + receiver(fn) + fn.Name.Name
			if lines <= functionLinesMax {
				continue
			}
			if excused[name] == "" {
				t.Errorf("%s: %s has %d lines, %d at most: divide it", f.pos(fn), name, lines, functionLinesMax)
			}
			used[name] = true
		}
	}
	for name := range excused {
		if !used[name] {
			t.Errorf("%s no longer needs its entry in longFunctions", name)
		}
	}
}

func receiver(fn *ast.FuncDecl) string {
	if fn.Recv == nil || len(fn.Recv.List) == 0 {
		return ""
	}
	typ := fn.Recv.List[0].Type
	if star, ok := typ.(*ast.StarExpr); ok {
		typ = star.X
	}
	if gen, ok := typ.(*ast.IndexExpr); ok {
		typ = gen.X
	}
	if id, ok := typ.(*ast.Ident); ok {
		return id.Name + "."
	}
	return ""
}

func TestNoInit(t *testing.T) {
	for _, f := range sources(t) {
		for _, d := range f.ast.Decls {
			if fn, ok := d.(*ast.FuncDecl); ok && fn.Recv == nil && fn.Name.Name == "init" {
				t.Errorf("%s: init runs whether wanted or not: give the work to a constructor", f.pos(fn))
			}
		}
	}
}

func TestPureStartNoGoroutines(t *testing.T) {
	for _, f := range sources(t) {
		if !slices.Contains(pure(), f.pkg.rel()) {
			continue
		}
		ast.Inspect(f.ast, func(n ast.Node) bool {
			if g, ok := n.(*ast.GoStmt); ok {
				t.Errorf("%s: a state machine starts no goroutine", f.pos(g))
			}
			return true
		})
	}
}

// stateful are types that hold state even if nobody assigns to the variable. A
// sync.Pool is none: what is in it never shows.
const stateful = `^(\*?sync\.(Mutex|RWMutex|Map|Once|WaitGroup|Cond)|\*?atomic\.\w+(\[.*\])?|chan\b.*)$`

func TestNoMutableGlobals(t *testing.T) {
	state := regexp.MustCompile(stateful)
	excused := globals()
	vars := map[string]map[string]*ast.ValueSpec{} // package, name
	all := sources(t)
	for _, f := range all {
		if vars[f.pkg.rel()] == nil {
			vars[f.pkg.rel()] = map[string]*ast.ValueSpec{}
		}
		for _, d := range f.ast.Decls {
			g, ok := d.(*ast.GenDecl)
			if !ok || g.Tok != token.VAR {
				continue
			}
			for _, spec := range g.Specs {
				v := spec.(*ast.ValueSpec)
				for _, id := range v.Names {
					name := f.pkg.rel() + "." + id.Name
					if id.Name == "_" || excused[name] != "" {
						continue
					}
					vars[f.pkg.rel()][id.Name] = v
					if typ := typeText(f, v); state.MatchString(typ) {
						t.Errorf("%s: %s is state of the whole process (%s): put it in a struct", f.pos(id), name, typ)
					}
				}
			}
		}
	}
	for _, f := range all {
		global := func(e ast.Expr) string {
			id := rootIdent(e)
			if id == nil {
				return ""
			}
			spec, ok := vars[f.pkg.rel()][id.Name]
			// Obj is nil if the file does not declare the name: then it is the package's.
			if !ok || id.Obj != nil && id.Obj.Decl != spec {
				return ""
			}
			return id.Name
		}
		ast.Inspect(f.ast, func(n ast.Node) bool {
			var targets []ast.Expr
			switch s := n.(type) {
			case *ast.AssignStmt:
				if s.Tok != token.DEFINE {
					targets = s.Lhs
				}
			case *ast.IncDecStmt:
				targets = []ast.Expr{s.X}
			case *ast.CallExpr:
				if fn, ok := s.Fun.(*ast.Ident); ok && (fn.Name == "delete" || fn.Name == "clear") && len(s.Args) > 0 {
					targets = s.Args[:1]
				}
			}
			for _, e := range targets {
				if name := global(e); name != "" {
					t.Errorf("%s: changes %s.%s, a variable of the package: put it in a struct", f.pos(n), f.pkg.rel(), name)
				}
			}
			return true
		})
	}
}

// typeText is the declared type as written, or that of a composite literal.
func typeText(f *file, v *ast.ValueSpec) string {
	typ := v.Type
	if typ == nil && len(v.Values) == 1 {
		switch e := v.Values[0].(type) {
		case *ast.CompositeLit:
			typ = e.Type
		case *ast.UnaryExpr:
			if lit, ok := e.X.(*ast.CompositeLit); ok {
				typ = lit.Type
			}
		case *ast.CallExpr:
			if fn, ok := e.Fun.(*ast.Ident); ok && fn.Name == "make" && len(e.Args) > 0 {
				typ = e.Args[0]
			}
		}
	}
	if typ == nil {
		return ""
	}
	from, to := f.set.Position(typ.Pos()).Offset, f.set.Position(typ.End()).Offset
	data, err := os.ReadFile(filepath.Join(f.pkg.Dir, f.name))
	if err != nil || to > len(data) {
		return ""
	}
	return string(data[from:to])
}

func rootIdent(e ast.Expr) *ast.Ident {
	for {
		switch x := e.(type) {
		case *ast.Ident:
			return x
		case *ast.SelectorExpr:
			e = x.X
		case *ast.IndexExpr:
			e = x.X
		case *ast.StarExpr:
			e = x.X
		case *ast.ParenExpr:
			e = x.X
		default:
			return nil
		}
	}
}

// TestBubbles sees that tests run in test/bubble's bubbles and not in bare ones, for the reason given there.
func TestBubbles(t *testing.T) {
	bare := regexp.MustCompile(`\bsynctest\.(` + `Test|Run)\(`)
	base := root(t)
	seen := 0
	err := filepath.WalkDir(base, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() || !strings.HasSuffix(path, "_test.go") {
			return err
		}
		data, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		seen++
		if rel, _ := filepath.Rel(base, path); bare.Match(data) {
			t.Errorf("%s starts a bubble itself: bubble.Test does it", rel)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if seen < 20 {
		t.Fatalf("only %d files looked at", seen)
	}
}

// TestNothingOfTheMachine looks through every file of the repository for what
// belongs to the machine it was written on. The patterns are put together here
// so that this file does not match itself.
func TestNothingOfTheMachine(t *testing.T) {
	var bad []*regexp.Regexp
	for _, parts := range [][]string{{`/wo`, `rk/`}, {`/ro`, `ot/`}, {`/ho`, `me/[a-z]`}, {`/Us`, `ers/`}, {`/tmp/`, `contracts`}, {`C:`, `\\`}} {
		bad = append(bad, regexp.MustCompile(strings.Join(parts, "")))
	}
	base := root(t)
	seen := 0
	err := filepath.WalkDir(base, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		name := d.Name()
		if d.IsDir() {
			if path != base && (name == ".git" || name == "data" || name == "bin") {
				return filepath.SkipDir
			}
			return nil
		}
		if !d.Type().IsRegular() || name == "go.sum" || name == "LICENSE" || name == "cairn" || strings.HasSuffix(name, ".test") || strings.HasSuffix(name, ".prof") {
			return nil
		}
		data, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		if bytes.IndexByte(data[:min(len(data), 8000)], 0) >= 0 {
			return nil
		}
		seen++
		for i, line := range bytes.Split(data, []byte("\n")) {
			for _, re := range bad {
				if m := re.Find(line); m != nil {
					rel, _ := filepath.Rel(base, path)
					t.Errorf("%s:%d: %q is a path of one machine", rel, i+1, m)
				}
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if seen < 20 {
		t.Fatalf("only %d files looked at", seen)
	}
}
