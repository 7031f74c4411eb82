"""Statements as a reader checks them: each line's explanation is worked by hand and compared with its amount."""

import re
from collections.abc import Iterable

from saucer.billing.domain import month_of
from saucer.billing.messages import monthly_statement_message, statement_message
from saucer.billing.service import Billing
from saucer.billing.v1 import billing_pb2

# Few, so that a start's lines lie on several.
LINES_OF_A_PAGE = 3
DECIDED = (
    billing_pb2.STATEMENT_LINE_KIND_TOP_UP,
    billing_pb2.STATEMENT_LINE_KIND_CREDIT,
    billing_pb2.STATEMENT_LINE_KIND_DEBIT,
    billing_pb2.STATEMENT_LINE_KIND_REFUND,
)
_HELD = re.compile(r"2 h × (\d+) × (\d+)")
_RELEASED = re.compile(r"(\d+) held − (\d+) posted")
_UNUSED = re.compile(r"(\d+) held, not used in time")
_CHARGED = re.compile(
    r"floor\((\d+) × (\d+) × (\d+) s ÷ 3600\) − (\d+) taken or lost before"
    r"(?:, at most the (\d+) held|, as far as the balance of (\d+) reaches|, which neither hold nor balance covered|"
    r", of a hold that was not used in time)?"
)


def worked(explanation: str) -> int | None:
    """What the formula gives, in micros; None: there is none, somebody decided the amount."""
    text = re.sub(r"^start \S+: ", "", explanation)
    if found := _HELD.fullmatch(text):
        return 2 * int(found[1]) * int(found[2])
    if found := _RELEASED.fullmatch(text):
        return int(found[1]) - int(found[2])
    if found := _UNUSED.fullmatch(text):
        return int(found[1])
    if found := _CHARGED.fullmatch(text):
        unpaid = int(found[1]) * int(found[2]) * int(found[3]) // 3600 - int(found[4])
        return min([unpaid, *(int(bound) for bound in found.groups()[4:] if bound is not None)])
    return None


def check_lines(lines: Iterable[billing_pb2.StatementLine]) -> None:
    """Each explanation gives its line's amount."""
    for line in lines:
        amount = worked(line.explanation)
        assert (amount is None) == (line.kind in DECIDED), line
        assert amount in (None, line.amount_micros), line


async def of_start(billing: Billing, account_id: str) -> list[tuple[int, str]]:
    """Amounts and explanations of the only start's lines."""
    ((statement,), _) = await billing.statements.list(account_id, work_id=None, after=None, limit=9)
    return [(line.amount_micros, line.explanation) for line in statement_message(statement).lines]


async def check_account(billing: Billing, account_id: str) -> int:
    """Every line of an account, by its starts and by its months; how many there are."""
    account = await billing.accounts.get(account_id)
    statements, more = await billing.statements.list(account_id, work_id=None, after=None, limit=1_000_000)
    assert not more
    for statement in statements:
        check_lines(statement_message(statement).lines)
    first = month_of(account.created_at, account.time_zone)
    months = {month_of(line.created_at, account.time_zone) for one in statements for line in one.transfers} | {first}
    return sum([await _check_month(billing, account_id, month) for month in sorted(months)])


async def _check_month(billing: Billing, account_id: str, month: str) -> int:
    lines, version = 0, None
    while True:
        page = await billing.statements.of_month(account_id, month, after_version=version, limit=LINES_OF_A_PAGE)
        message = monthly_statement_message(page, "")
        check_lines(message.lines)
        _check_balances(message)
        lines += len(message.lines)
        if not page.more:
            return lines
        version = page.transfers[-1].account_version


def _check_balances(page: billing_pb2.MonthlyStatement) -> None:
    """A balance that bounds a line is the one that the line before it left."""
    available_micros = page.opening_available_micros
    for line in page.lines:
        if bound := re.search(r"balance of (\d+) reaches", line.explanation):
            assert int(bound[1]) == available_micros, line
        available_micros = line.available_micros
