"""The scripts for completion of virtagentctl's words in bash, zsh and fish, made from the parser."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Mapping, Sequence

from .options import PROG, commands_of, options_of

_BASH = """\
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
"""
_BASH_TAIL = """\
}}
complete -o default -F _{prog} {prog}
"""
_ZSH = """\
#compdef {prog}
# zsh completion for {prog}; load it with: source <({prog} completion zsh)
_{prog}() {{
    local word command= before=${{words[CURRENT-1]}}
    integer i=2
    while (( i < CURRENT )); do
        word=${{words[i]}}
        case $word in
        --)
            [[ $command == snapshot ]] || return 1
            # What follows is a command line of its own.
            shift $i words
            (( CURRENT -= i ))
            _normal
            return
            ;;
"""
_ZSH_TAIL = """\
}}
if [[ $funcstack[1] == _{prog} ]]; then _{prog} "$@"; else compdef _{prog} {prog}; fi
"""
_FISH = """\
# fish completion for {prog}; load it with: {prog} completion fish | source
function __{prog}_words
    set -l words (commandline -opc)
    set -l at (contains -i -- -- $words); or return 1
    if set -q argv[1]
        # What follows -- is a command line of its own.
        complete -C (string join " " -- (string escape -- $words[(math $at + 1)..-1]) (commandline -ct))
    end
end
complete -c {prog} -n "not __{prog}_words" -f
complete -c {prog} -n "__{prog}_words; and __fish_seen_subcommand_from snapshot" -f -a "(__{prog}_words all)"
"""


def bash(top: argparse.ArgumentParser) -> str:
    """Return the script for bash."""

    def offer(words: str) -> str:
        return f'mapfile -t COMPREPLY < <(compgen -W "{words}" -- "$current")'

    return "".join([_BASH.format(prog=PROG), *_cases(top, offer, "return"), _BASH_TAIL.format(prog=PROG)])


def zsh(top: argparse.ArgumentParser) -> str:
    """Return the script for zsh, which also works as a file _virtagentctl among zsh's functions."""

    def offer(words: str) -> str:
        return f"compadd -- {words}"

    return "".join([_ZSH.format(prog=PROG), *_cases(top, offer, "_files"), _ZSH_TAIL.format(prog=PROG)])


def fish(top: argparse.ArgumentParser) -> str:
    """Return the script for fish."""
    return _FISH.format(prog=PROG) + "".join(f"complete -c {PROG} {line}\n" for line in _fish(top))


SHELLS: Mapping[str, Callable[[argparse.ArgumentParser], str]] = {"bash": bash, "zsh": zsh, "fish": fish}


def _cases(top: argparse.ArgumentParser, offer: Callable[[str], str], value: str) -> Iterator[str]:
    """Yield the lines that bash and zsh share: which command it is, what may follow; `value` completes a value."""
    commands = commands_of(top)
    every = [action for one in (top, *commands.values()) for action in options_of(one)]
    # An option that takes several words ends at the next option. Only its first word is skipped, which does no harm.
    valued = sorted({name for action in every if action.nargs != 0 for name in action.option_strings})
    choices = {name: _choices(action) for action in every if action.choices for name in action.option_strings}
    yield f"        {'|'.join(valued)}) (( i += 1 )) ;;\n"
    yield "        -*) ;;\n        *) [[ -n $command ]] || command=$word ;;\n        esac\n"
    yield "        (( i += 1 ))\n    done\n"
    yield "    case $before in\n"
    for name, words in sorted(choices.items()):
        yield f"    {name}) {offer(' '.join(words))}; return ;;\n"
    yield f"    {'|'.join(name for name in valued if name not in choices)}) {value}; return ;;\n    esac\n"
    yield "    case $command in\n"
    yield f'    "") {offer(" ".join([*_words(top), *commands]))} ;;\n'
    for name, one in commands.items():
        yield f"    {name}) {offer(' '.join(_words(one)))} ;;\n"
    yield "    esac\n"


def _fish(top: argparse.ArgumentParser) -> Iterator[str]:
    commands = commands_of(top)
    none_yet = f'-n "not __{PROG}_words; and not __fish_seen_subcommand_from {" ".join(commands)}"'
    yield from _fish_options(options_of(top), none_yet)
    for name, one in commands.items():
        yield f"{none_yet} -a {name} -d {_quoted(one.description or '')}"
        yield from _fish_options(options_of(one), f'-n "not __{PROG}_words; and __fish_seen_subcommand_from {name}"')


def _fish_options(actions: Sequence[argparse.Action], when: str) -> Iterator[str]:
    for action in actions:
        about = f"-d {_quoted(action.help or '')}"
        words = f'-a "{" ".join(_choices(action))}"' if action.choices else ""
        names = [name.removeprefix("--") for name in action.option_strings if name.startswith("--")]
        for name in names:
            needs = "" if action.nargs == 0 else "-x" if words else "-r"
            yield " ".join(filter(None, (when, f"-l {name}", needs, words, about)))
        if not action.option_strings and words:
            yield f"{when} {words} {about}"


def _quoted(words: str) -> str:
    return "'" + words.replace("\\", "\\\\").replace("'", "\\'") + "'"


def _choices(action: argparse.Action) -> list[str]:
    return [str(choice) for choice in action.choices or ()]


def _words(one: argparse.ArgumentParser) -> list[str]:
    names = [name for action in options_of(one) for name in action.option_strings if name.startswith("--")]
    return names + [word for action in options_of(one) if not action.option_strings for word in _choices(action)]
