"""What a quote says besides billing's own figures: the most that a start can cost, and what to know before it."""

from saucer.lib.money import MAX_FINISHING_MS, charge_micros, in_words
from saucer.task.domain import Config, Form
from saucer.task.peers import Quote


def highest_cost_micros(form: Form, config: Config, quote: Quote) -> int:
    """At the max duration, with finishing as long as it is charged."""
    return charge_micros(quote.price_per_hour_micros, form.count, config.max_duration_ms + MAX_FINISHING_MS)


def warnings(form: Form, config: Config, quote: Quote, estimated_ms: int) -> list[str]:
    """Sentences, each of something that the user may want to change first."""
    found = []
    if estimated_ms > config.max_duration_ms:
        found.append("The estimate exceeds the max duration; training will be stopped before its last epoch.")
    if config.batch_size % form.count:
        share = -(-config.batch_size // form.count)
        found.append(
            f"A batch of {config.batch_size} cannot be shared evenly by {form.count} GPUs; each takes {share}."
        )
    if quote.missing_micros:
        found.append(
            f"{in_words(quote.missing_micros, quote.currency)} are missing; top up before you create the task."
        )
    return found
