"""The page of what was learnt says what the committed cells say."""

from tests.benchmarks.learn.readme_tables import README, TABLES
from tests.house.readme_tables import with_tables


def test_every_table_is_that_of_the_committed_summaries():
    """`python -m tests.benchmarks.learn.readme_tables` would change nothing."""
    text = README.read_text()
    assert with_tables(text, TABLES) == text
