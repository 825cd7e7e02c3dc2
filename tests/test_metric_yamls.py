"""The choices of one features network are one network, trained once, kept once."""

from itertools import groupby

from yamls import names, node


def features():
    """What each metric asks of its features, without what names the file of their weights."""
    asked = [node("metric", name).get("features", {}) for name in names("metric")]
    return [{key: value for key, value in one.items() if key != "weights"} for one in asked if one]


def test_metrics_on_features_of_one_kind_ask_for_the_same_ones():
    kinds = {kind: list(same) for kind, same in groupby(sorted(features(), key=kind_of), key=kind_of)}
    assert len(kinds["ddpm.metric.Classifier"]) >= 5
    for kind, same in kinds.items():
        assert all(one == same[0] for one in same), kind


def kind_of(one):
    return one["_target_"]
