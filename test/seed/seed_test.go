package seed

import "testing"

func TestChoose(t *testing.T) {
	fixed, err := choose("", "TestA")
	if again, _ := choose("", "TestA"); err != nil || fixed == 0 || fixed != again {
		t.Errorf("the seed of a test is %d, then %d, %v", fixed, again, err)
	}
	if other, _ := choose("", "TestB"); other == fixed {
		t.Error("two tests have one seed")
	}
	if s, err := choose("4294967295", "TestA"); err != nil || s != 4294967295 {
		t.Errorf("the seed given is taken as %d, %v", s, err)
	}
	drawn := map[uint64]bool{}
	for range 8 {
		s, err := choose("random", "TestA")
		if err != nil || s == 0 || s>>32 != 0 {
			t.Errorf("drawn: %d, %v", s, err)
		}
		drawn[s] = true
	}
	if len(drawn) == 1 {
		t.Error("eight draws gave one seed")
	}
	for _, bad := range []string{"0", "-1", "4294967296", "Random"} {
		if s, err := choose(bad, "TestA"); err == nil {
			t.Errorf("%q is taken as %d", bad, s)
		}
	}
}
