"""The script that completes virtagentctl's words in bash, made from the parser."""

from __future__ import annotations

import argparse

from .options import PROG, commands_of, options_of

_HEAD = """\
# bash completion for {prog}; load it with: source <({prog} completion bash)
_{prog}() {{
    local word command= i=1 current=${{COMP_WORDS[COMP_CWORD]}} before=${{COMP_WORDS[COMP_CWORD-1]}}
    COMPREPLY=()
    while (( i < COMP_CWORD )); do
        word=${{COMP_WORDS[i]}}
        case $word in
        --)
            [[ $command == snapshot ]] || return
            # What follows is a command line of its own.
            if declare -F _command_offset >/dev/null; then
                _command_offset $((i + 1))
            elif (( i + 1 == COMP_CWORD )); then
                mapfile -t COMPREPLY < <(compgen -c -- "$current")
            fi
            return
            ;;
        {valued}) (( i += 1 )) ;;
        -*) ;;
        *) [[ -n $command ]] || command=$word ;;
        esac
        (( i += 1 ))
    done
"""
_TAIL = """\
    mapfile -t COMPREPLY < <(compgen -W "$words" -- "$current")
}}
complete -o default -F _{prog} {prog}
"""


def bash(top: argparse.ArgumentParser) -> str:
    """Return the script."""
    commands = commands_of(top)
    every = [action for one in (top, *commands.values()) for action in options_of(one)]
    # An option that takes several words ends at the next option: only the first is skipped, which is no harm.
    valued = sorted({name for action in every if action.nargs != 0 for name in action.option_strings})
    lines = [_HEAD.format(prog=PROG, valued="|".join(valued))]
    choices = {
        name: " ".join(map(str, action.choices)) for action in every if action.choices for name in action.option_strings
    }
    lines.append("    case $before in\n")
    for name, words in sorted(choices.items()):
        lines.append(f'    {name}) mapfile -t COMPREPLY < <(compgen -W "{words}" -- "$current"); return ;;\n')
    lines.append(f"    {'|'.join(name for name in valued if name not in choices)}) return ;;\n    esac\n")
    lines.append("    local words\n    case $command in\n")
    lines.append(f'    "") words="{" ".join(_words(top))} {" ".join(commands)}" ;;\n')
    lines += [f'    {name}) words="{" ".join(_words(one))}" ;;\n' for name, one in commands.items()]
    lines += ["    *) return ;;\n    esac\n", _TAIL.format(prog=PROG)]
    return "".join(lines)


def _words(one: argparse.ArgumentParser) -> list[str]:
    names = [name for action in options_of(one) for name in action.option_strings if name.startswith("--")]
    return names + [
        str(choice) for action in options_of(one) if not action.option_strings for choice in action.choices or ()
    ]
