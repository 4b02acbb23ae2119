"""Tab completion: the chat's commands and their arguments."""

from collections.abc import Iterable, Mapping

from prompt_toolkit.completion import CompleteEvent, Completer, Completion, PathCompleter
from prompt_toolkit.document import Document


class CommandCompleter(Completer):
    """Completes a command's name, then its argument: one of several words, or a path. Messages are not completed.

    arguments: for each command the words it takes; None for a path.
    """

    def __init__(self, arguments: Mapping[str, Iterable[str] | None]):
        self._arguments = arguments
        self._paths = PathCompleter(expanduser=True)

    def get_completions(self, document: Document, complete_event: CompleteEvent) -> Iterable[Completion]:
        """The completions of the text before the cursor."""
        before = document.text_before_cursor
        name, space, argument = before.partition(" ")
        if not before.startswith("/") or "\n" in before:
            return
        if not space:
            names = (one for one in self._arguments if one.startswith(name))
            yield from (Completion(f"{one} ", -len(name), display=one) for one in names)
            return
        words = self._arguments.get(name, ())
        if words is None:
            yield from self._files(argument.lstrip(), complete_event)
        else:
            yield from (Completion(word, -len(argument)) for word in words if word.startswith(argument))

    def _files(self, begun: str, complete_event: CompleteEvent) -> Iterable[Completion]:
        for found in self._paths.get_completions(Document(begun), complete_event):
            if found.text.isprintable():  # else no terminal can show it, or it is not UTF-8
                inside = "/" if found.display_text.endswith("/") else ""
                yield Completion(found.text + inside, found.start_position, display=found.display)
