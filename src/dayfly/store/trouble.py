"""The two troubles of a database elsewhere that whoever holds a transaction may want to tell apart; both are data_unusable to a caller."""

from dayfly.core.model.errors import Refusal


class Unreachable(Refusal):
    """The server does not answer, or not in time: it may later, without anybody changing anything here. Nothing was written."""

    def __init__(self, detail: str) -> None:
        super().__init__("data_unusable", detail)


class Doubtful(Refusal):
    """The connection broke while a transaction was committed: whether it was, only reading it again can tell."""

    def __init__(self, where: object) -> None:
        super().__init__("data_unusable", f"{where} went away while a change was committed; whether it was written is not known yet.")
