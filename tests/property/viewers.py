"""Viewers and the processes they are attached to. The window they read live events from is the real one."""

from __future__ import annotations

from broker.errors import GenerationExpired, GenerationUnknown
from broker.events import Entry
from broker.log import Page
from broker.position import BEGINNING, Position
from broker.tail import Topic
from tests.property.world import News, World, text_of


class Hub:
    """One process that follows the generation: a topic, and the notifications that are on their way to it."""

    def __init__(self, world: World) -> None:
        self._world = world
        self.topic = Topic(world.generation)
        self.coming: list[News] = []
        world.audience.append(self.coming)

    def hear(self, messages: int) -> None:
        """The next notifications arrive."""
        for news in self.coming[:messages]:
            if news is None:
                self.topic.disturb()
            else:
                self.topic.notify(*news)
        del self.coming[:messages]

    def miss(self, messages: int) -> None:
        """The next notifications are lost, and nobody notices."""
        del self.coming[:messages]

    def subscribe_anew(self) -> None:
        """The subscription broke and stands again. Nothing of what was on its way arrives."""
        self.coming.clear()
        self.topic.disturb()

    def check(self) -> None:
        """Compare the window with the log's last entry, as is done once a second."""
        entries = self._world.now.entries
        if self.topic.window.last != (entries[-1].position if entries else None):
            self.topic.disturb()


class Viewer:
    """A reader. It holds its position and what it shows, and nothing else. `page`: most entries it reads at once."""

    def __init__(self, world: World, hub: Hub, *, page: int) -> None:
        self._world = world
        self.hub = hub
        self._most = page
        self._reading: Page | None = None  # a page of the log that is on its way
        self._shown: list[Entry] = []
        self.cursor = BEGINNING

    @property
    def text(self) -> list[str]:
        return text_of(self._shown)

    def look(self) -> None:
        """Take the next step: a page that was asked for, what the window has, or ask the log."""
        window = self.hub.topic.window
        if self._reading is not None:
            page, self._reading = self._reading, None
            if page.held:
                self._show(page.entries)
                if self.cursor == page.last:
                    window.start(self.cursor)
            else:
                self._shown, self.cursor = [], BEGINNING
        elif (notices := window.after(self.cursor)) is not None:
            self._show([notice.entry for notice in notices])
        else:
            log = self._world.stage.log
            try:
                self._reading = self._world.stage.call(log.read(self._world.generation, self.cursor, self._most))
            except (GenerationUnknown, GenerationExpired):
                return  # told to come again, or that it is over; what it shows stays

    def check(self) -> None:
        """Whoever holds a position that the log holds has the log's text up to there."""
        entries = self._world.now.entries
        places = [BEGINNING, *(entry.position for entry in entries)]
        if self.cursor in places:
            text = text_of(entries[: places.index(self.cursor)])
            self._world.promise(self.text == text, f"a viewer at {self.cursor} shows {self.text} instead of {text}")

    def _show(self, entries: list[Entry]) -> None:
        for entry in entries:
            place = Position.parse(entry.position)
            self._world.promise(
                place.seq == Position.parse(self.cursor).seq + 1, f"a viewer at {self.cursor} is given {entry.position}"
            )
            self._world.name(entry)
            self._shown.append(entry)
            self.cursor = entry.position
