"""Dynamic-rank DoRA's first events may set no component to 0, and are then marked as empty."""

from low_rank_helpers import adapted

from flexlora.baselines.dynamic_dora import DynamicDoraModel


def test_an_event_that_sets_nothing_to_zero_is_empty():
    model = adapted("dynamic_dora", "bert", r=4, target_r=2, total_step=20, tinit=2, tfinal=8, deltaT=1)
    tuner = model.base_model
    assert isinstance(tuner, DynamicDoraModel)
    components = sum(tuner.ranks().values())
    events = [event for step in range(1, 21) if (event := tuner.after_step(step)) is not None]
    assert [event["empty"] for event in events] == [event["total_rank"] == components for event in events]
    assert {event["empty"] for event in events} == {True, False}
