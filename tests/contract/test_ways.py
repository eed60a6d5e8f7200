"""docs/ways.md says what the proofs measured."""

from bench import ways


def test_the_page_is_the_one_that_the_results_give() -> None:
    assert ways.PAGE.read_text() == ways.page(), "run python -m bench"
