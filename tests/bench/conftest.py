import json

import pytest

from bench import common


@pytest.fixture
def measure(tmp_path, capsys):
    """Run a bench's main with --json and give what it printed."""

    def run(main, *arguments):
        code = common.run(main, [*arguments, "--json", "--save", str(tmp_path / "results")])
        assert code == 0
        return json.loads(capsys.readouterr().out)

    return run
