"""Commands of the documentation, typed: blocks and their comments, and the shell that runs them."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.first_hour import Shell, blocks
from splitedge import errors

PAGE = """Text.

<!-- first-hour: on=server until="ready on" -->
```sh
# a comment
one --first \\
  --second   # note

two
```

1. In a list:

    <!-- first-hour: skip="needs systemd" slow -->
    ```sh
    three
    ```

<!-- first-hour: on=board file=~/a.toml -->
```toml
x = 1
```

```python
four
```
"""


def test_blocks_know_where_they_run_and_their_commands() -> None:
    first, second, third, fourth = blocks("page.md", PAGE)
    assert (first.where, first.until, first.commands()) == (
        "server",
        "ready on",
        ["one --first    --second   # note", "two"],
    )
    assert (second.skip, second.slow, second.commands()) == ("needs systemd", True, ["three"])
    assert (third.where, third.file, third.text) == ("board", "~/a.toml", "x = 1\n")
    assert (fourth.language, fourth.marked) == ("python", False)
    assert PAGE.splitlines()[first.line - 1] == "```sh"


def test_an_unknown_word_in_a_comment_is_an_error() -> None:
    with pytest.raises(errors.UsageError):
        blocks("page.md", "<!-- first-hour: at=server -->\n```sh\none\n```\n")


def test_a_shell_keeps_variables_and_folder_and_reports_each_status(tmp_path: Path) -> None:
    with Shell(tmp_path / "work", tmp_path / "home", {"GIVEN": "yes"}) as shell:
        assert shell.run("x=3; cd /")[0] == 0
        status, _, output = shell.run('echo "$x $PWD $HOME $GIVEN"; false')
        assert (status, output) == (1, f"3 / {tmp_path / 'home'} yes\n")
        shell.write("~/a/b.txt", "text")
        assert shell.run("cat ~/a/b.txt")[2] == "text"


def test_a_command_that_keeps_running_is_done_once_it_prints_the_text(tmp_path: Path) -> None:
    with Shell(tmp_path / "work", tmp_path / "home", {}) as shell:
        status, _, output = shell.run("echo ready on 1; sleep 600", "ready on")
        assert (status, output) == (0, "ready on 1\n")
        assert shell.run("true")[0] == 0
