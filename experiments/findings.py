"""What ``summary.json`` found, as parts of a page: the certificate in words, the metrics in tables.

Every number is shown under its name there (`pages.number`); where there is none, the page says why.
"""

from collections.abc import Iterable, Iterator
from typing import Any

from experiments import charts, pages, records
from experiments.pages import Html, tag
from rtbjax.certificate import MAX_PARETO_K, VERDICTS

# Why a value may be null, by the last part of its name.
_REASONS = {
    "log_z_reference": "no reference log Z is known",
    "log_z_reference_ci": "no reference log Z is known",
    "path_kl": "no reference log Z is known",
    "eubo": "r has no declared bound, or no prior path of some condition was accepted",
    "pareto_k": "too few paths, or too few different weights, to have a tail",
    "log_z_reference_pareto_k": "no reference, or the mean of an r whose bound rules a tail out",
    "compile": "the run was not timed",
    "first_step": "the last sitting took no training step",
    "train": "the run was not timed",
    "skipped": "they were not counted",
    "log_z_is": "these samples estimate none",
    "bleu": "needs nltk, of the extra text",
    "gleu": "needs nltk, of the extra text",
    "self_bleu": "needs nltk, of the extra text",
    "q_minus_reference": "no state has a reference that can be trusted",
    "q_standardised": "no state has a reference that can be trusted",
}
# What metrics are, by name.
MEANINGS = {
    "start_excess": "half of it is, about, the path-KL that no training removes: prior and posterior share their start",
    "start_excess_error": "its standard error",
    "prior_ess": "effective share of the prior's samples, were they reweighted by r instead",
    "log_reward": "mean log r",
    "accuracy": "share of the samples that are recognised as what was asked for",
    "diversity": "mean cosine distance of pairs of samples, in the features of the network that judges them",
    "frechet_to_exact": "Fréchet distance to exact samples in the classifier's features; as low as it gets is "
    "what a second exact set has",
    "c2st": "how often neighbours tell the samples from exact ones; 0.5 is a coin, which is the aim",
    "mode_tv": "total variation between the weights of the modes and the exact ones",
    "off_mode_mass": "share of the samples more than three standard deviations from every mode",
    "sliced_w2": "sliced 2-Wasserstein distance to exact samples, in the units of the samples",
    "misfit": "distance between what was measured and the measurement of the samples, in units of the noise; of images "
    "that may have been measured it is 1",
    "error": "root mean square between the mean of the samples and the image that was measured",
    "std_seen": "standard deviation between samples where the measurement sees the image",
    "std_missing": "standard deviation between samples where it does not",
    "q": "mean value Q of the actions, over states",
    "q_minus_reference": "mean Q less that by importance sampling from the prior, over the states where it is trusted",
    "q_standardised": "that difference in its standard errors, root mean square over states; about 1 if all is exact",
    "trusted": "share of the states in which importance sampling from the prior has effective samples enough",
    "median_ess": "number of its effective samples in the median state",
    "bleu": "BLEU-4 against the story's own sentence",
    "gleu": "GLEU-4 against it",
    "self_bleu": "BLEU of infills of one story against each other; less is more diverse",
    "distinct_1": "share of the words in the infills of a story that differ",
    "distinct_2": "share of the pairs of words that do",
    "embedding_f1": "likeness to the story's own sentence by vectors of words",
    "bert_score": "likeness to it by vectors of words in context",
    "event_tv": "total variation of the events that infills tell from the grammar's own p(z | x, y)",
    "event_tv_to_exact": "the same from exact samples of this run's target",
    "no_event": "share of the infills that tell no event of the grammar",
}


def value(found: Any, name: str) -> Html:
    """A number or a text of ``summary.json`` by its dotted name there, or why there is none."""
    if found is None:
        reason = _REASONS.get(name.rpartition(".")[2], "it was no finite number")
        return tag("span", f"none: {reason}", class_="reason", data_name=name)
    return pages.number(found, name) if records.finite_number(found) else pages.escaped(str(found))


def verdict(certificate: dict[str, Any]) -> Html:
    """The verdict, what decided it, what it means, and what to do about it; or why there is none."""
    name = certificate["verdict"]
    if name is None:
        return tag("p", f"No certificate: {certificate['reason']}.", class_="verdict")
    meaning, advice = VERDICTS[name]
    words = f": {certificate['reason']}. It says: {meaning}. What to do: {advice}."
    return tag("p", tag("strong", name), words, class_=f"verdict {name}")


def of_certificate(certificate: dict[str, Any]) -> Iterator[Html]:
    """Every number of the certificate with what it says, and each condition's."""
    c = certificate
    if c["verdict"] is None:
        yield pages.facts(
            [
                (
                    "log Z, of the particles",
                    *_estimate(c, "log_z_is"),
                    *_if_known(c, "log_z_is", "the log of the mean of their estimates"),
                ),
                ("log Z, by the reference", *_estimate(c, "log_z_reference"), f"by {c['log_z_reference_source']}"),
                _reference_tail(c),
            ]
        )
        return
    samples = c["ess"] * c["num_paths"]
    yield pages.facts(
        [
            (
                "log Z, by importance sampling",
                *_estimate(c, "log_z_is"),
                "from ",
                value(c["num_paths"], "certificate.num_paths"),
                " fresh paths of the posterior, and blind to what these never visit",
            ),
            (
                "log Z, by the reference",
                *_estimate(c, "log_z_reference"),
                *_if_known(c, "log_z_reference", f"without the posterior, by {c['log_z_reference_source']}; "),
                _agreement(c),
            ),
            ("ELBO", *_one(c, "elbo", "mean log-weight of the posterior's paths, a lower bound of log Z")),
            ("EUBO", *_one(c, "eubo", "mean log-weight of exact posterior paths, an upper bound of log Z")),
            (
                "Path-KL",
                *_one(c, "path_kl", "nats, reference less ELBO: as far as the reference is right, the KL divergence "),
                *_if_known(c, "path_kl", "of the samples from the posterior is at most this"),
            ),
            ("Path-KL of what was visited", *_one(c, "path_kl_lower", "nats, the first log Z less ELBO")),
            ("ESS", *_one(c, "ess", f"reweighted, the samples are worth about {samples:,.0f} of the posterior")),
            (
                "Pareto k",
                *_one(c, "pareto_k", f"tail index of the weights; above {MAX_PARETO_K} they cannot be trusted"),
            ),
            _reference_tail(c),
        ]
    )
    if each := c.get("per_condition"):
        yield tag("h3", "Each condition")
        count = {name: sum(one["verdict"] == name for one in each) for name in VERDICTS}
        verdicts = ", ".join(f"{number} {name}" for name, number in count.items() if number)
        yield tag("p", f"The numbers above are means over {len(each)} conditions. Their verdicts: {verdicts}.")
        # What is looked for comes first: the table is wider than most screens.
        yield _by_condition([{"verdict": one["verdict"]} | one for one in each], "certificate.per_condition")


def _reference_tail(certificate: dict[str, Any]) -> tuple[Any, ...]:
    words = f"tail index of the rewards behind it; above {MAX_PARETO_K} it is most often too low"
    return ("Pareto k of the reference", *_one(certificate, "log_z_reference_pareto_k", words))


def _one(certificate: dict[str, Any], name: str, words: str) -> Iterator[Any]:
    yield value(certificate[name], f"certificate.{name}")
    yield from _if_known(certificate, name, f": {words}")


def _estimate(certificate: dict[str, Any], name: str) -> Iterator[Any]:
    """A number with its interval."""
    yield value(certificate[name], f"certificate.{name}")
    if certificate[f"{name}_ci"] is not None:
        low, high = (value(end, f"certificate.{name}_ci.{i}") for i, end in enumerate(certificate[f"{name}_ci"]))
        yield from (", with 95 % confidence between ", low, " and ", high, ": ")


def _if_known(certificate: dict[str, Any], name: str, words: str) -> Iterator[str]:
    if certificate[name] is not None:
        yield words


def _agreement(certificate: dict[str, Any]) -> str:
    if certificate["log_z_reference_ci"] is None:
        return ""
    (low, high), (known_low, known_high) = certificate["log_z_is_ci"], certificate["log_z_reference_ci"]
    if high < known_low or known_high < low:
        return f"the posterior's paths find {'less' if high < known_low else 'more'}, and the intervals are apart"
    return "the two intervals overlap"


def _by_condition(each: list[dict[str, Any]], where: str) -> Html:
    """A row for each, which starts with the ``condition`` that it is of."""
    rows = [records.flatten(_without_lists(one)) for one in each]
    names = dict.fromkeys(name for row in rows for name in row if name != "condition")
    named = [{name: (found, f"{where}.{i}.{name}") for name, found in row.items()} for i, row in enumerate(rows)]
    return _table(zip((row["condition"] for row in rows), named, strict=True), names)


def _without_lists(tree: dict[str, Any]) -> dict[str, Any]:
    """An interval ``[a, b]`` as ``{"0": a, "1": b}``."""
    return {
        name: dict(zip(map(str, range(len(found))), found, strict=True)) if isinstance(found, list) else found
        for name, found in tree.items()
    }


def _table(rows: Iterable[tuple[str, dict[str, tuple[Any, str]]]], columns: Iterable[str]) -> Html:
    """Rows, each of values with their names by column; what a row does not have stays empty."""
    columns = list(columns)
    return pages.table(
        ["", *columns],
        ([row, *(value(*of[name]) if name in of else "" for name in columns)] for row, of in rows),
    )


def of_metrics(metrics: dict[str, Any]) -> Iterator[Html]:
    """Sets of samples side by side, then single numbers, then tables by condition or the like.

    A dictionary of numbers is a set of samples; one of its metrics that is a dictionary itself holds the share of every
    kind, and is drawn. A dictionary of dictionaries has a row for each, a list one for each condition.
    """
    many = {name: found for name, found in metrics.items() if isinstance(found, dict) and _all_dicts(found)}
    sets = {name: found for name, found in metrics.items() if isinstance(found, dict) and name not in many}
    if sets:
        yield from _of_sets(sets)
    single = {name: found for name, found in metrics.items() if not isinstance(found, (dict, list))}
    if single:
        said = {name: f": {words}" for name, words in MEANINGS.items()}
        yield pages.facts((name, value(found, f"metrics.{name}"), said.get(name, "")) for name, found in single.items())
    for name, found in many.items():
        rows = [
            (row, {column: (one, f"metrics.{name}.{row}.{column}") for column, one in of.items()})
            for row, of in found.items()
        ]
        yield tag("h3", name.capitalize())
        yield _table(rows, dict.fromkeys(column for of in found.values() for column in of))
    if each := metrics.get("per_condition"):
        yield pages.folded("Each condition", _by_condition(each, "metrics.per_condition"))


def _all_dicts(found: dict[str, Any]) -> bool:
    return bool(found) and all(isinstance(one, dict) for one in found.values())


def _of_sets(sets: dict[str, dict[str, Any]]) -> Iterator[Html]:
    names = dict.fromkeys(name for of in sets.values() for name in of)
    kinds = [name for name in names if any(isinstance(of.get(name), dict) for of in sets.values())]
    rows = [
        (name, {one: (of[name], f"metrics.{one}.{name}") for one, of in sets.items() if name in of})
        for name in names
        if name not in kinds
    ]
    columns = "Each column is a set of samples, all taken alike: those of the posterior (rtb) are not reweighted."
    if "exact" in sets:
        columns += " exact is a second exact set, where there is one: what differs there is chance."
    yield tag("p", columns)
    yield _table(rows, sets)
    yield pages.facts((name, MEANINGS[name]) for name in names if name in MEANINGS)
    for name in kinds:
        shares = {one: of[name] for one, of in sets.items() if name in of}
        rows = [
            (kind, {one: (of[kind], f"metrics.{one}.{name}.{kind}") for one, of in shares.items()})
            for kind in next(iter(shares.values()))
        ]
        yield tag("h3", f"Shares of {name}")
        yield charts.legend(shares)
        yield tag("figure", pages.picture(charts.bars(shares), f"Shares of {name}, set by set", "svg+xml"))
        yield pages.folded("In numbers", _table(rows, shares))
