"""The builder of one member of a cohort: the only part of a run that knows of other runs in its process."""

from collections.abc import Callable
from typing import TypeVar

from lightning import Callback

from kd.app.build import Builder, Plan
from kd.app.compose import Command
from kd.data.module import DataModule
from kd.methods.base import Teacher
from kd.sweeps.cohort import Member, SharedDataModule

T = TypeVar("T")


class MemberBuilder(Builder):
    """Makes what the runs of a cohort have in common once for all of them.

    Args:
        command: this member's run.
        member: the member.
    """

    timed = False

    def __init__(self, command: Command, member: Member) -> None:
        self.member = member
        super().__init__(command)

    def shared(self, name: str, make: Callable[[], T]) -> T:
        return self.member.shared(name, make)

    def shared_teacher(self, teacher: Teacher) -> Teacher:
        return self.member.shared_teacher(teacher)

    def callbacks(self) -> list[Callback]:
        return self.member.callbacks()

    def data(self, plan: Plan) -> DataModule:
        data = super().data(plan)
        # What is trained for the store is trained once, while the other members wait.
        return data if plan.kept_as_teacher else SharedDataModule(data, self.member)
