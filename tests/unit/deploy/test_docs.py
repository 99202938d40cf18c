from pathlib import Path

from common.config import RunConfig
from deploy.docs import configuration_page, main

PAGE = Path(__file__).resolve().parents[3] / "docs" / "configuration.md"


def test_the_page_in_docs_is_current() -> None:
    assert PAGE.read_text() == configuration_page(), "run `make docs`"


def test_every_section_and_kind_of_key_is_on_the_page() -> None:
    page = configuration_page()
    for name in RunConfig.model_fields:
        assert f"## [{name}" in page
    assert "| `max_staleness` | integer (≥ 0) | `4` | identity |" in page
    assert '| `url` | text | `""` | operational |' in page
    assert "| `student` | path | required | identity |" in page


def test_the_page_is_written_where_asked(tmp_path: Path) -> None:
    assert main([str(tmp_path / "page.md")]) == 0
    assert (tmp_path / "page.md").read_text() == configuration_page()
