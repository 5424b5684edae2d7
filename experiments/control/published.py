"""The paper's numbers for D4RL v2 (tables 4 and G.1): normalised scores, five seeds each."""

POLICIES = ("bc", "cql", "awr", "diffuser", "decision diffuser", "dql", "idql", "qgpo", "RTB")
QUOTED = {
    "diffuser": "Diffuser (quoted)",
    "decision diffuser": "Decision Diffuser (quoted)",
}  # Planners.

_TABLE_4 = {
    "halfcheetah-medium-expert": "55.2 91.6 86.7 79.8 90.6±1.3 96.1±0.3 95.9 93.5±0.3 74.93±1.72",
    "hopper-medium-expert": "52.5 105.4 91.5 107.2 111.8±1.8 110.7±1.3 108.6 108.0±2.5 96.71±3.53",
    "walker2d-medium-expert": "107.5 108.8 109.6 108.4 108.8±1.7 109.7±0.3 112.7 110.7±0.6 109.52±0.11",
    "halfcheetah-medium": "42.6 44.0 47.4 44.2 49.1±1.0 50.6±0.5 51.0 54.1±0.4 53.70±0.33",
    "hopper-medium": "52.9 58.5 66.3 58.5 79.3±3.6 82.4±4.6 65.4 98.0±2.6 82.76±7.07",
    "walker2d-medium": "75.3 72.5 78.3 79.7 82.5±1.4 85.1±0.9 82.5 86.0±0.7 87.29±3.15",
    "halfcheetah-medium-replay": "36.6 45.5 44.2 42.2 39.3±4.1 47.5±0.3 45.8 47.6±1.4 48.11±0.56",
    "hopper-medium-replay": "18.1 95.0 94.7 96.8 100.0±0.7 100.7±0.6 92.1 96.9±2.6 100.40±0.21",
    "walker2d-medium-replay": "26.0 77.2 73.9 61.2 75.0±4.3 94.3±1.5 85.1 84.4±4.1 93.57±2.63",
}
_TABLE_G1 = {
    "halfcheetah-medium-replay": "46.88±0.51 48.11±0.56",
    "hopper-medium-replay": "99.23±3.22 100.40±0.21",
    "walker2d-medium-replay": "94.01±0.28 93.57±2.63",
}


def _rows(table: dict[str, str], columns: tuple[str, ...]) -> dict[str, dict[str, str]]:
    return {name: dict(zip(columns, row.split(), strict=True)) for name, row in table.items()}


TABLES = {
    "table4": _rows(_TABLE_4, POLICIES),
    "online_vs_mixed": _rows(_TABLE_G1, ("online", "mixed")),
    "alpha_sweep": {},  # Of alpha the paper tells its choice alone, which is `configs.d4rl.ALPHA`.
}
