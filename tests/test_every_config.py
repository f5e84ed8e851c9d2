"""Every file under `configs` goes the whole way, and so does one that nobody has seen before.

Data are made up from the catalogue file itself (`every_config`), and commands alone are called.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml
from every_config import CONFIGS, Example, config_for, examples
from whole_way import check_list, go_the_whole_way, recommend

from data_prep.catalogue import load_catalogue

pytestmark = pytest.mark.usefixtures("restored_torch")

GUIDE = CONFIGS.parent / "docs" / "add-a-catalogue.md"

HERBARIUM = """
name: Ziegenhain-2
kind: seed-bank
items:
  table: Tabellen/Belege (neu).jsonl
  id: "№ d'inventaire"
  where: '"ÉTAT" = ''sec'''
  missing: ["", "sine nomine"]
  text: ["Nom botanique", "ОПИСАНИЕ [ru]", text]
  image: ["Foto.Datei", "foto.datei"]
  audio: ["Gesang/Rauschen"]
  vectors: {DNA_7: "Vektor α,β"}
  attributes:
    "Blüten: Farben": {type: set, separator: " & "}
    "Größe (cm)": {type: number}
    "family": {type: category}
    "Familie = ?": {type: category}
users:
  table: Gärtner.csv
  id: "Wer?"
  attributes:
    "KLIMA zone": {type: category}
interactions:
  table: Ausleihe.csv
  user: "Wer?"
  item: Beleg-Nr.
  time: "时间"
  event: "WAS geschah"
  value: "Körner %"
  context: ["Gewächs|haus"]
  targets: {events: [gesät]}
split: {protocol: leave_one_out, cold_validation: 0.1, cold_test: 0.1}
"""


@pytest.mark.parametrize("example", examples(), ids=lambda each: each.name)
def test_file_goes_the_whole_way(
    example: Example, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = example.config
    if config is None:
        config = tmp_path / "config.yaml"
        config.write_text(yaml.safe_dump(config_for(load_catalogue(example.catalogue))))
    go_the_whole_way(example.catalogue, config, tmp_path, capsys, prepares=example.overrides)


def test_header_of_a_run_names_its_catalogue_file() -> None:
    """Else data would be made for another file, and the pair that is meant stays untried."""
    silent = {each.config.stem for each in examples() if each.config and not each.named}
    assert silent == {"tiny"}


def test_unseen_catalogue_with_odd_columns_needs_no_code(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    catalogue, config = tmp_path / "herbarium.yaml", tmp_path / "config.yaml"
    catalogue.write_text(HERBARIUM, encoding="utf-8")
    settings = config_for(load_catalogue(catalogue))
    signals = dict.fromkeys(("events", "values", "times", "context", "users"), True)
    settings["model"] |= {"signals": signals}
    settings["model"]["history"]["start"] = True
    config.write_text(yaml.safe_dump(settings), encoding="utf-8")
    run = go_the_whole_way(catalogue, config, tmp_path, capsys)

    def asked(*words: str) -> list[dict[str, object]]:
        return recommend(run, words, capsys)

    check_list(asked("--history", "001,item/2", "--context", "Gewächs|haus=phone"))
    assert {each["basis"] for each in asked("--attribute", "KLIMA zone=red")} == {"attributes"}


def test_examples_of_the_guide_go_the_whole_way(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    blocks = re.findall(r"```yaml\n(.*?)```", GUIDE.read_text(encoding="utf-8"), flags=re.DOTALL)
    assert len(blocks) == 2, "the guide has a catalogue file and a run's settings"
    files = [tmp_path / "catalogue.yaml", tmp_path / "config.yaml"]
    for path, block in zip(files, blocks, strict=True):
        path.write_text(block, encoding="utf-8")
    go_the_whole_way(*files, tmp_path, capsys)
