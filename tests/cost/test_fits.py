"""From how many ranks on a run fits."""

from hypothesis import given
from hypothesis import strategies as st

from ist_hpc.cost.fits import fewest_ranks


@given(at_one=st.booleans(), least=st.integers(2, 40), most=st.integers(1, 33))
def test_the_search_finds_the_fewest(at_one, least, most):
    tried = []

    def fits(ranks):
        assert 1 <= ranks <= most
        tried.append(ranks)
        return at_one if ranks == 1 else ranks >= least

    fitting = [ranks for ranks in range(1, most + 1) if (at_one if ranks == 1 else ranks >= least)]
    assert fewest_ranks(fits, most) == (fitting[0] if fitting else None)
    assert len(tried) <= 14
