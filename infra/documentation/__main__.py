"""`python -m infra.documentation` writes every page of docs/ that is made from code. Tests compare the pages with the code."""

from infra import ROOT
from infra.documentation import components, configuration, licences, network, outputs

PAGES = {
    "components.md": components.document,
    "configuration.md": configuration.document,
    "licences.md": licences.document,
    "network.md": network.document,
    "outputs.md": outputs.document,
    "stack.schema.json": configuration.schema_text,
}

if __name__ == "__main__":
    for name, made in PAGES.items():
        (ROOT / "docs" / name).write_text(made())
