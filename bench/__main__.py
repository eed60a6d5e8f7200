"""The pages of docs that are written from results: `python -m bench`, after any of them changed."""

import sys

from bench import practices, ways


def main() -> int:
    for each in (practices, ways):
        each.PAGE.write_text(each.page())
        print(each.PAGE)
    return 0


if __name__ == "__main__":
    sys.exit(main())
