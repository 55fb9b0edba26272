"""Which traces are sampled when they start: the standard samplers, and head rules by method and path.

What they do not sample can still be kept when it ends: see `late`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import Any

from opentelemetry.context import Context
from opentelemetry.sdk.trace.sampling import (
    ALWAYS_OFF,
    ALWAYS_ON,
    Decision,
    ParentBased,
    Sampler,
    SamplingResult,
    TraceIdRatioBased,
)
from opentelemetry.trace import Link, SpanKind
from opentelemetry.trace.span import TraceState
from opentelemetry.util.types import Attributes

from otel_perf import conventions as c
from otel_perf.settings import Settings
from otel_perf.sources import SettingsError
from otel_perf.telemetry import sdk

__all__ = ["Rules", "check", "sampler", "wild"]

_METHODS = frozenset(
    ("*", "GET", "HEAD", "POST", "PUT", "DELETE", "CONNECT", "OPTIONS", "TRACE", "PATCH", "QUERY", "_OTHER")
)
_RULE = re.compile(r"(?:(\*|\w+)\s+)?([/*].*?)\s*=\s*([^=\s]+)", re.DOTALL)
_ID_BITS = TraceIdRatioBased.TRACE_ID_LIMIT
_SPAN_KEY, _get_context = sdk.SPAN_KEY, sdk.get_context


def check(settings: Settings) -> None:
    """Finds out before anything is started whether the rules can be understood.

    Raises:
        SettingsError: for a rule that cannot.
    """
    Rules(settings.sample_rules)


def sampler(settings: Settings, *, record: bool = False) -> Sampler:
    """The sampler that the settings ask for.

    Args:
        settings: where `sampler`, `sample_ratio` and `sample_rules` are taken from.
        record: what is not sampled is recorded all the same, because late rules want to see it.
    """
    roots: dict[str, Sampler] = {
        "always_on": ALWAYS_ON,
        "always_off": ALWAYS_OFF,
        "traceidratio": TraceIdRatioBased(settings.sample_ratio),
    }
    root = roots[settings.sampler.removeprefix("parentbased_")]
    parent_based = settings.sampler.startswith("parentbased_")
    if record or settings.sample_rules:
        return _Ruled(Rules(settings.sample_rules), root, parent_based, record)
    return ParentBased(root) if parent_based else root


def wild(text: str, group: str) -> str:
    """A regular expression for text in which `*` stands for any; no text takes it longer than one pass per `*`."""
    first, *rest = (re.escape(part) for part in re.split(r"\*+", text))
    if not rest:
        return first
    # The first place where a part fits is as good as any: what a look-ahead found is never tried again.
    passed = [f"(?=(?P<{group}_{n}>.*?{part}))(?P={group}_{n})" for n, part in enumerate(rest[:-1])]
    return f"{first}{''.join(passed)}.*{rest[-1]}"


class Rules:
    """Shares by method and path, compiled into one expression; the first rule that fits counts."""

    __slots__ = ("bounds", "count", "match")

    def __init__(self, rules: Sequence[str]) -> None:
        self.count = len(rules)
        parts: list[str] = []
        bounds: list[int] = []
        for number, rule in enumerate(rules):
            method, path, share = _read(rule)
            parts.append(f"{'[^ ]*' if method == '*' else method} {wild(path, f'r{number}')}(?P<r{number}>)")
            bounds.append(TraceIdRatioBased.get_bound_for_rate(share))
        pattern = re.compile("|".join(parts), re.DOTALL)
        #: Finds the rule for a method, a space and a path.
        self.match = pattern.fullmatch
        #: By the group that stands at the end of a rule, which is the last that matched: the lower 64 bits of a trace
        #: id must be below this for the trace to be sampled.
        self.bounds = {pattern.groupindex[f"r{number}"]: bound for number, bound in enumerate(bounds)}

    def bound(self, method: str, path: str) -> int | None:
        """The bound of the first rule that fits, or None."""
        found = self.match(f"{method} {path}")
        return None if found is None else self.bounds[found.lastindex or 0]


def _read(rule: str) -> tuple[str, str, float]:
    found = _RULE.fullmatch(rule.strip())
    method, path, written = found.groups() if found is not None else (None, "", "")
    method = (method or "*").upper()
    try:
        share = float(written)
    except ValueError:
        share = math.nan
    if found is None or method not in _METHODS or not 0 <= share <= 1:
        why = (
            "it is not METHOD PATH=SHARE" if found is None
            else f"{method} is no method that spans tell apart" if method not in _METHODS
            else f"{written} is no share from 0 to 1"
        )  # fmt: skip
        raise SettingsError(
            f"sample_rules={rule!r} cannot be used: {why}. Write it as `GET /health*=0` or `/search*=0.1`: a method "
            f"({', '.join(sorted(_METHODS))}) or none, a path from its `/` on in which `*` stands for any text, "
            "and the share of traces to sample"
        )
    return method, path, share


class _Ruled(Sampler):
    """Asks the rules about requests that start a trace, and another sampler about what no rule fits.

    Where there are rules, spans within the process follow their parent, since a rule knows the request only. A remote
    parent is followed where `parent_based` says so; otherwise such requests are decided like those without a parent.
    """

    def __init__(self, rules: Rules, otherwise: Sampler, parent_based: bool, record: bool) -> None:
        self._rules = rules
        self._match, self._bounds = rules.match if rules.count else None, rules.bounds
        self._otherwise = otherwise
        #: What the other sampler says, where that is always the same.
        self._always = True if otherwise is ALWAYS_ON else False if otherwise is ALWAYS_OFF else None
        # What the lean tracer does by itself: it follows parents, records all, and asks only where there are rules.
        self.by_parent, self.records = parent_based, record
        self.usual = None if rules.count else otherwise
        self._follows = parent_based or rules.count > 0
        # The SDK's own `AlwaysRecordSampler` would record without the attributes.
        self._unsampled = Decision.RECORD_ONLY if record else Decision.DROP

    def should_sample(  # noqa: PLR0917  # the SDK's signature
        self, parent_context: Context | None, trace_id: int, name: str, kind: SpanKind | None = None,
        attributes: Attributes = None, links: Sequence[Link] | None = None, trace_state: TraceState | None = None,
    ) -> SamplingResult:  # fmt: skip
        above = (_get_context() if parent_context is None else parent_context).get(_SPAN_KEY)
        ask: Any = getattr(above, "get_span_context", None)
        # A tuple: trace id, span id, remote, flags, state, valid. By its properties each would cost a call.
        parent: Any = None if ask is None else ask()
        decided: bool | None = None
        state: TraceState | None = None
        if parent is not None and parent[5]:
            state = parent[4]
            if self.by_parent or (self._follows and not parent[2]):
                decided = parent[3] & 1 == 1
        if decided is None and self._match is not None and kind is SpanKind.SERVER and attributes:
            found = self._match(_asked(attributes))
            if found is not None:
                decided = trace_id & _ID_BITS < self._bounds[found.lastindex or 0]
        if decided is None:
            decided = self._always
        if decided is None:
            result = self._otherwise.should_sample(parent_context, trace_id, name, kind, attributes, links, trace_state)
            if result.decision is not Decision.DROP:
                return result
        elif decided:
            return SamplingResult(Decision.RECORD_AND_SAMPLE, attributes, state)
        return SamplingResult(self._unsampled, None if self._unsampled is Decision.DROP else attributes, state)

    def get_description(self) -> str:
        more = f"{',parentBased' * self.by_parent}{',recorded' * (self._unsampled is Decision.RECORD_ONLY)}"
        return f"Ruled{{{self._rules.count} rules,otherwise:{self._otherwise.get_description()}{more}}}"


def _asked(attributes: Any) -> str:
    """The method and path of a request, as rules want them."""
    path = attributes.get(c.URL_PATH)
    if path is None:  # an instrumentation of the older conventions
        return f"{attributes.get('http.method')} {str(attributes.get('http.target')).partition('?')[0]}"
    return f"{attributes.get(c.HTTP_METHOD)} {path}"
