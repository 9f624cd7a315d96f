from kd.settings import decisive, fingerprint

SETTINGS = {
    "seed": 0,
    "teacher_weights": None,
    "trainer": {"precision": "auto", "devices": 1},
    "data": {"root": "data", "source": {"_target_": "kd.data.cifar.cifar10", "root": "data"}},
}


def test_one_teacher_is_the_run_of_before_there_were_ensembles():
    """So that its sweeps go on, and its seeds share a row."""
    assert fingerprint({**SETTINGS, "ensemble": 1}) == fingerprint(SETTINGS)
    assert fingerprint({**SETTINGS, "ensemble": 2}) != fingerprint(SETTINGS)


def test_where_a_run_happens_decides_nothing():
    elsewhere = {**SETTINGS, "threads": 2, "logger": None, "teacher_store": "x", "trainer": {"precision": "auto"}}
    assert decisive(elsewhere) == decisive(SETTINGS)
    assert decisive({**SETTINGS, "trainer": {"precision": "32-true"}}) != decisive(SETTINGS)
