"""virtagentctl's first milliseconds, its completion and its manual page."""

from __future__ import annotations

import pytest
from virtagent.host import completion, manual, options, transports


@pytest.mark.parametrize("shell", completion.SHELLS)
def test_the_script_is_what_the_command_prints(capsys: pytest.CaptureFixture[str], shell: str) -> None:
    from virtagent.host import cli

    assert cli.main(["completion", shell]) == 0
    assert capsys.readouterr().out == completion.SHELLS[shell](options.parser())


def test_the_manual_page_names_everything() -> None:
    page = manual.page(options.parser()).replace("\\-", "-")
    commands = options.commands_of(options.parser())
    for name, one in commands.items():
        assert f"\n.SS {name}" in page
        for action in options.options_of(one):
            assert all(option in page for option in action.option_strings)
    assert all(f"\n.B {code}\n" in page for code, _ in options.EXIT_CODES)
    assert all(f"\n.B {scheme}:" in page for scheme in transports.SCHEMES)
