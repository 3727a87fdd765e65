import re
import xml.etree.ElementTree as ElementTree

from training.serve.chart import chart


def test_each_level_has_a_bar_as_high_as_its_weight_and_says_it() -> None:
    drawn = ElementTree.fromstring(chart([0.25, 0.5, 0.0, 1.0]))
    bars = drawn.findall(".//rect")
    heights = [float(bar.attrib["height"]) for bar in bars]
    assert heights[1] == 2 * heights[0] and heights[3] == 2 * heights[1] and heights[2] < 1
    assert [bar.attrib["class"] for bar in bars] == ["local", "local", "local", "global"]
    said = [bar.findtext("title") for bar in bars]
    assert said == ["level 1: 0.250", "level 2: 0.500", "level 3: 0.000", "level 4: 1.000"]
    assert re.search("level 2 0.50", drawn.find("svg").attrib["aria-label"])
