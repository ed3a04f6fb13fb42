"""Code in docs/ runs and prints what the page shows; the table of families is that of the registry."""

import contextlib
import io
import pathlib
import re
import subprocess
import sys

import jax

from emppl.families.table import family_table

DOCS = pathlib.Path(__file__).parents[1] / "docs"


def test_extending_prints_what_the_page_shows():
    blocks = re.findall(r"^```(python|text)\n(.*?)^```", (DOCS / "extending.md").read_text(), re.MULTILINE | re.DOTALL)
    names: dict = {"__name__": "__main__"}
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed), jax.numpy_rank_promotion("allow"):
        for language, block in blocks:
            if language == "python":
                exec(compile(block, "extending.md", "exec"), names)
    assert printed.getvalue() == "".join(block for language, block in blocks if language == "text")


def test_table_of_families_is_up_to_date():
    # In a process of its own: other tests register families.
    done = subprocess.run([sys.executable, "-m", "emppl.families.table"], capture_output=True, text=True, check=True)
    assert done.stdout.strip() in (DOCS / "families.md").read_text(), "write it again: see the top of docs/families.md"
    assert family_table().startswith("| family |")
