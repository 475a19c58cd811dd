"""``speechbrain-merge completion``: a script that completes words in bash.

The script is made from the command line's own parser, with the names of the
methods and fragments there are, so that completing needs no Python::

    folder=~/.local/share/bash-completion/completions
    mkdir -p $folder
    speechbrain-merge completion > $folder/speechbrain-merge

Everything else is completed as a file.

Authors
 * The speechbrain_merge authors 2026
"""

import argparse

from speechbrain_merge.command.fragments import fragments
from speechbrain_merge.methods import available

SCRIPT = """\
# bash completion of speechbrain-merge, written by `speechbrain-merge completion`
_speechbrain_merge() {
    local word=${COMP_WORDS[COMP_CWORD]} before=${COMP_WORDS[COMP_CWORD-1]}
    local command= words= each
    for each in "${COMP_WORDS[@]:1:COMP_CWORD-1}"; do
        case $each in -*) ;; *) command=$each; break ;; esac
    done
    case $command:$before in
CHOICES
        *) case $command in
WORDS
        esac ;;
    esac
    COMPREPLY=($(compgen -W "$words" -- "$word"))
}
complete -o default -F _speechbrain_merge speechbrain-merge
"""


def run(options) -> dict:
    """The script."""
    return {"script": script(options.parser)}


def show(found):
    """Prints the script."""
    print(found["script"], end="")


def script(parser: argparse.ArgumentParser) -> str:
    """A bash script that completes what a parser knows.

    Arguments
    ---------
    parser : argparse.ArgumentParser
        With sub-commands.

    Returns
    -------
    str
        To be sourced by bash.
    """
    (commands,) = [
        action.choices
        for action in parser._actions
        if isinstance(action, argparse._SubParsersAction)
    ]
    first = {
        "merge": available(),
        "methods": available(),
        "fragments": sorted(fragments()),
    }
    choices = []
    words = [
        f'            "") words="{_spaced([*commands, *_options(parser)])}" ;;'
    ]
    for name, command in commands.items():
        known = [*_options(command)]
        for action in command._actions:
            if action.choices and action.option_strings:
                places = "|".join(
                    f"{name}:{option}" for option in action.option_strings
                )
                choices.append(
                    f'        {places}) words="{_spaced(action.choices)}" ;;'
                )
            elif action.choices:
                known += action.choices
        if name in first:
            # beside files, where a plan or an expert may stand
            known += first[name]
        words.append(f'            {name}) words="{_spaced(known)}" ;;')
    text = SCRIPT.replace("CHOICES\n", "".join(f"{one}\n" for one in choices))
    return text.replace("WORDS\n", "".join(f"{one}\n" for one in words))


def _options(parser):
    """The options of a parser, by their long names where they have one."""
    return [
        action.option_strings[-1]
        for action in parser._actions
        if action.option_strings
    ]


def _spaced(words):
    """Words as a list for bash."""
    return " ".join(map(str, words))
