"""Which heads and MLPs a row aligned with which of the teacher's, as its runs say.

Extras are whatever a method says: what is no list of pairs of sites is not shown.
"""

from collections import Counter
from typing import Annotated, Any

from pydantic import Field, TypeAdapter, ValidationError

from cdbench.record import Record
from cdbench.report.circuits import short_site
from cdbench.report.collect import StudyData

Row = dict[str, Any]
Pairs = list[tuple[str, str]]
_Site = Annotated[str, Field(pattern=r"^(attn\.\d{1,3}\.head\.\d{1,3}|mlp\.\d{1,3}\.out)$")]
_PAIRS = TypeAdapter(Annotated[list[tuple[_Site, _Site]], Field(min_length=1, max_length=5000)])
_SHOWN = 24


def component_pairs(record: Record) -> Pairs | None:
    """(student, teacher) as a run says; None where it says nothing that can be understood."""
    try:
        return _PAIRS.validate_python(record.extras.get("component_pairs"))
    except ValidationError:
        return None


def pair_rows(data: StudyData) -> list[Row]:
    """Of each row whose runs tell: the pairs of its first run, most important component of the student first.

    `shared`: how many of the student's have a partner that another one has, too (errata A7). `alike`: in how many runs the same
    components go together.
    """
    rows = []
    for group in data.groups:
        found = [(record, pairs) for record in group.records if (pairs := component_pairs(record))]
        if not found:
            continue
        first = found[0][1]
        partners = Counter(teacher for _, teacher in first)
        rows.append(
            {
                "name": group.name,
                "pairs": [f"{short_site(one)} → {short_site(other)}" for one, other in first[:_SHOWN]],
                "more": max(0, len(first) - _SHOWN),
                "count": len(first),
                "shared": sum(partners[teacher] > 1 for _, teacher in first),
                "alike": sum(set(pairs) == set(first) for _, pairs in found),
                "runs": len(found),
                "run_ids": [record.run_id for record, _ in found],
            }
        )
    return rows
