"""The report in a browser, as somebody who was sent the file would use it."""

from __future__ import annotations

import base64
import random
import re
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import orjson
import pytest
from browser import Watched, chromium, needs_chromium
from cli import drift
from report_run import grown, made_document, make_run, trace_run, write_page
from test_segments import planted, trace_segments

from drift_cli.store.paths import Store
from drift_cli.store.run import Run

pytestmark = needs_chromium

HOSTILE = {
    1: "<script>document.title='owned'</script><img src=x onerror=\"document.title='owned'\"> <b>bold</b> &amp; </script></style><!--",
    2: "# heading\n**bold** [link](javascript:alert(1)) `code` $x_1$\n| a | b |\n@DATA@ @SCRIPT@ </textarea>",
    3: "bell \u0007 null-ish \u0001 escape \u001b[31m override \u202eevil\u202c zero\u200bwidth separator \u2028 tag \U000e0041 end",
    4: "x" * 100_000,
    5: "שלום עולם مرحبا بالعالم 中文 👩‍👩‍👧 \U0001f600",
}


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as found:
        yield found


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Any:
    found = make_run(tmp_path_factory.mktemp("report"))
    trace_run(found)
    return found


@pytest.fixture(scope="module")
def address(run: Any, tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_page(made_document(run), tmp_path_factory.mktemp("page") / "report.html")


@pytest.fixture
def watched(browser: Any) -> Iterator[Watched]:
    found = Watched(browser)
    yield found
    assert found.complaints == []
    assert {url.partition("#")[0].split(":")[0] for url in found.requests} <= {"file"}
    assert len({url.partition("#")[0] for url in found.requests}) <= 1
    found.context.close()


def _texts(page: Any, selector: str) -> list[str]:
    return page.locator(selector).all_inner_texts()


def test_the_page_says_what_the_run_is_and_what_follows_from_it(watched: Watched, address: str) -> None:
    page = watched.open(address)
    assert page.title().startswith("made-")
    assert _texts(page, "#verdict p") == ["complex stays closer to the assistant than baseline.", "One script only."]
    assert "somebody/model" in page.locator("#facts").inner_text()
    assert "Be simple, please." in page.locator("#conditions").inner_text()
    assert page.locator("#tables caption").inner_text() == "Means of rollouts"
    assert not page.locator("#opening").count()


def test_conditions_are_toggled_by_button_and_by_key(watched: Watched, address: str) -> None:
    page = watched.open(address)
    means = page.locator("#chart .mean")
    assert means.count() == 3
    page.get_by_role("button", name="simple").click()
    assert [path.get_attribute("data-condition") for path in means.all()] == ["baseline", "complex"]
    assert page.get_by_role("button", name="simple").get_attribute("aria-pressed") == "false"
    assert _texts(page, ".head strong") == ["baseline", "complex"]
    page.keyboard.press("2")
    assert means.count() == 3


def test_hovering_and_sliding_read_a_turn_and_a_click_picks_a_rollout(watched: Watched, address: str) -> None:
    page = watched.open(address)
    page.locator("#chart svg").hover()  # its middle
    assert page.locator("#readout strong").inner_text() == "Turn 3"
    assert re.search(r"baseline: \+2\.\d{3} \[\+\d\.\d{3}, \+\d\.\d{3}\], n = 4", page.locator("#readout").inner_text())
    page.locator("#chart-turn").fill("5")
    assert page.locator("#readout strong").inner_text() == "Turn 5"
    assert "reference: +1.000" in page.locator("#readout").inner_text()
    page.locator("#pick").select_option("simple/2")
    assert page.locator("#chart .picked").count() == 1
    page.get_by_role("link", name="read it").click()
    page.wait_for_selector('.turn.current[data-turn="5"]')
    assert "rollout 2" in page.locator(".head").nth(1).inner_text()


def test_a_deep_link_opens_that_rollout_at_that_turn(watched: Watched, address: str) -> None:
    page = watched.open(f"{address}#simple/2/turn-4")
    assert page.locator(".turn.current").get_attribute("data-turn") == "4"
    assert 0 <= page.locator("#turn-4").bounding_box()["y"] < 600
    assert "what simple says in rollout 2 at turn 4" in page.locator("#reader").inner_text()
    page.evaluate("location.hash = '#baseline/0/turn-2'")
    page.wait_for_selector('.turn.current[data-turn="2"]')
    assert "what baseline says in rollout 0" in page.locator("#reader").inner_text()


def test_a_link_that_leads_nowhere_does_no_harm(watched: Watched, address: str) -> None:
    page = watched.open(f"{address}#nobody/99/turn-1000")
    assert page.locator(".turn").count() == 5
    page.evaluate("location.hash = '#simple/3/turn-1000'")
    page.wait_for_selector('.turn.current[data-turn="5"]')


def test_keys_move_between_turns_and_samples_and_the_address_follows(watched: Watched, address: str) -> None:
    page = watched.open(address)
    for key in "jjl":
        page.keyboard.press(key)
    assert page.evaluate("location.hash") == "#baseline/1/turn-3"
    page.keyboard.press("k")
    page.keyboard.press("h")
    assert page.evaluate("location.hash") == "#baseline/0/turn-2"
    page.keyboard.press("c")
    assert _texts(page, ".head strong") == ["baseline"] * 3
    assert [text.split(",")[0] for text in _texts(page, ".head .of")] == ["rollout 0", "rollout 1", "rollout 2"]
    page.keyboard.press("?")
    assert page.locator("#help").is_visible()
    page.keyboard.press("Escape")
    assert not page.locator("#help").is_visible()


def test_search_finds_every_reply_and_leads_to_it(watched: Watched, address: str) -> None:
    page = watched.open(address)
    page.keyboard.press("/")
    page.keyboard.type("COMPLEX says in rollout 1 at turn 3")
    assert page.locator("#search-count").inner_text() == "1 text"
    assert page.locator("#results mark").inner_text() == "complex says in rollout 1 at turn 3"
    page.keyboard.press("Enter")
    page.wait_for_selector('.turn.current[data-turn="3"]')
    assert page.evaluate("location.hash") == "#complex/1/turn-3"
    page.locator("#search").fill("question 2")
    assert page.locator("#results a").inner_text() == "user, turn 2"
    page.locator("#search").fill("nobody says this")
    assert page.locator("#search-count").inner_text() == "0 texts"
    assert not page.locator("#results").is_visible()


def test_replies_say_how_they_ended_and_are_coloured_by_projection(watched: Watched, address: str) -> None:
    page = watched.open(address)
    heads = _texts(page, ".reply header")
    assert sum("cut at the length limit" in head for head in heads) == 3
    page.locator("#sample").select_option("3")
    assert "out of context before turn 5" in page.locator("#reader").inner_text()
    ground = "getComputedStyle(document.querySelector('.turn[data-turn=\"1\"] .reply')).backgroundColor"
    untraced = page.evaluate(ground)
    assert untraced not in ("rgba(0, 0, 0, 0)", "rgb(255, 255, 255)")
    page.get_by_label("colours").uncheck()
    assert page.evaluate(ground) == "rgba(0, 0, 0, 0)"


def test_traced_replies_have_a_coloured_span_for_every_token_and_the_same_text(watched: Watched, address: str) -> None:
    page = watched.open(f"{address}#simple/0/turn-1")
    spans = page.locator('.turn[data-turn="1"] .reply').nth(1).locator(".text span")
    assert spans.count() == len("This is what simple says in rollout 0 at turn 1, and it is not long.".split(" "))
    assert "".join(spans.all_text_contents()) == "This is what simple says in rollout 0 at turn 1, and it is not long."
    colours = [span.evaluate("node => node.style.background") for span in (spans.first, spans.last)]
    assert colours[0].startswith("rgba(230, 97, 1")
    assert colours[1].startswith("rgba(94, 60, 153")
    assert spans.first.get_attribute("title") == "−1.00"


def test_several_scripts_have_links_of_their_own(watched: Watched, tmp_path: Path) -> None:
    made = made_document(make_run(tmp_path, scripts=("talk", "other"), samples=1, turns=2))
    page = watched.open(write_page(made, tmp_path / "two.html") + "#other/simple/T0.7/0/turn-2")
    assert page.locator("#group").input_value() == "1"
    page.keyboard.press("k")
    assert page.evaluate("location.hash") == "#other/simple/T0.7/0/turn-1"
    page.locator("#group").select_option("0")
    assert page.evaluate("location.hash") == "#talk/simple/T0.7/0/turn-1"


def test_a_run_of_one_reply_opens_too(watched: Watched, tmp_path: Path) -> None:
    page = watched.open(write_page(made_document(make_run(tmp_path, conditions=("baseline",), samples=1, turns=1)), tmp_path / "one.html"))
    assert page.locator(".reply").count() == 1
    for key in "jklhc/":
        page.keyboard.press(key)
    assert page.locator("#chart .mean").count() == 1


def test_hostile_conversations_are_text_and_nothing_else(watched: Watched, tmp_path: Path) -> None:
    def text(condition: str, sample: int, turn: int) -> str:
        return HOSTILE[turn]

    run = make_run(tmp_path, conditions=("baseline", "odd"), samples=1, text=text)
    trace_run(run)
    made = made_document(run)
    made["groups"][0]["users"] = [*HOSTILE.values()]
    made["tables"][0]["rows"] = [[HOSTILE[1], HOSTILE[3]]]
    made["conditions"][1]["system"] = HOSTILE[2]
    path = tmp_path / "hostile.html"
    page = watched.open(write_page(made, path) + "#odd/0/turn-1")
    assert page.title().startswith("made-")
    assert page.locator("main img, main b, #reader script, main textarea, main style").count() == 0
    shown = page.locator(".turn[data-turn='1'] .reply .text").first.text_content()
    assert shown == HOSTILE[1]
    assert page.locator(".turn[data-turn='2'] .user .text").text_content() == HOSTILE[2]
    controls = page.locator(".turn[data-turn='3'] .reply .text").first.text_content()
    assert not re.search("[\u0000-\u0008\u000b-\u001f\u202a-\u202e\u200b\u2028]", controls)
    assert "\\u202eevil" in controls
    assert "\\ue0041" in controls
    # A line of 100,000 characters is broken, not the page.
    assert page.locator(".turn[data-turn='4'] .reply .text").first.text_content() == HOSTILE[4]
    assert page.evaluate("document.documentElement.scrollWidth <= document.documentElement.clientWidth")
    assert page.locator(".turn[data-turn='5'] .user .text").text_content() == visible_emoji(HOSTILE[5])
    page.locator("#search").fill("<script>")
    assert page.locator("#results mark").first.inner_text() == "<script>"
    # And the policy holds even against a script that did get in: nothing is loaded, nothing becomes markup.
    blocked = page.evaluate("() => { try { document.body.innerHTML = '<p>x'; return 'written'; } catch (error) { return error.name; } }")
    assert blocked == "TypeError"
    watched.complaints.clear()


def visible_emoji(text: str) -> str:
    """Joiners are spelled out, as they have no shape."""
    return text.replace("\u200d", "\\u200d")


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_axe_finds_no_serious_issue(browser: Any, address: str, theme: str) -> None:
    from axe_playwright_python.sync_playwright import Axe

    found = Watched(browser, color_scheme=theme, bypass_csp=True)
    page = found.open(address)
    page.locator("#search").fill("says")
    page.locator("#manifest summary").first.click()
    assert page.evaluate("document.documentElement.dataset.theme") == theme
    violations = Axe().run(page).response["violations"]
    serious = [(v["id"], [node["html"][:120] for node in v["nodes"]][:3]) for v in violations if v["impact"] in ("serious", "critical")]
    assert serious == []
    found.context.close()


def test_a_narrow_window_stacks_the_columns(browser: Any, address: str) -> None:
    found = Watched(browser, viewport={"width": 400, "height": 800})
    page = found.open(address)
    assert len({reply.bounding_box()["x"] for reply in page.locator(".turn[data-turn='1'] .reply").all()}) == 1
    assert page.evaluate("document.documentElement.scrollWidth <= document.documentElement.clientWidth")
    found.context.close()


def test_192_rollouts_of_18_long_turns_open_in_two_seconds_and_stay_under_15_megabytes(watched: Watched, tmp_path: Path) -> None:
    rng = random.Random(7)
    words = ["".join(rng.choices("abcdefghijklmnopqrstuvwxyz", k=rng.randint(2, 9))) for _ in range(5000)]
    made = grown(made_document(make_run(tmp_path, samples=1, turns=18)), 64, lambda sample: " ".join(rng.choices(words, k=370)))
    path = tmp_path / "large.html"
    address = write_page(made, path)
    assert sum(len(t["text"]) for g in made["groups"] for c in g["cells"] for r in c["rollouts"] for t in r["turns"]) > 8_000_000
    assert path.stat().st_size < 15_000_000
    # The quickest of three: other tests run on the same cores.
    milliseconds = [int(watched.open(address).evaluate("document.documentElement.dataset.ready")) for _ in range(3)]
    assert min(milliseconds) < 2000
    watched.page.locator("#search").fill(words[0])
    assert "texts" in watched.page.locator("#search-count").inner_text()


def test_the_file_holds_no_text_of_a_conversation_as_it_is(run: Any, tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    write_page(made_document(run), path)
    text = path.read_text()
    assert "what simple says" not in text
    data = re.search(r'id="data">([A-Za-z0-9+/=]*)</script>', text)
    assert data is not None
    assert "what simple says" in zlib.decompress(base64.b64decode(data[1])).decode()
    assert "default-src 'none'" in text
    assert not re.search(r"https?://(?!www\.w3\.org/2000/svg)", text)


def test_the_report_names_neither_machine_nor_folder(run: Any) -> None:
    made = orjson.dumps(made_document(run)).decode()
    assert "/home/somebody" not in made
    assert '"value":"model"' in made
    assert '"host"' not in made
    assert "pid" not in made


def test_reasoning_is_folded_beside_its_answer_and_can_be_searched(watched: Watched, tmp_path: Path) -> None:
    planted(tmp_path / "store")
    run = Run.newest(Store(tmp_path / "store"))
    trace_segments(run)
    made = drift("report", "--store", str(tmp_path / "store"), "-o", str(tmp_path / "thoughts.html"), "--json").json
    page = watched.open(Path(made["file"]).as_uri())
    reply = page.locator('article[aria-label="plain, rollout 0, turn 1"]')
    folded = reply.locator("details.reasoning")
    assert folded.locator("summary").inner_text() == "Reasoning"
    assert folded.get_attribute("open") is None
    assert reply.locator("> .text").inner_text() == "answer 0 1"
    assert not folded.locator(".text").is_visible()
    folded.locator("summary").click()
    assert folded.locator(".text").inner_text() == "thought 0 1"
    assert [len(part.locator("span").all()) for part in (folded.locator(".text"), reply.locator("> .text"))] == [3, 4]
    assert "of the answer" in page.locator("#chart-caption").inner_text()
    assert "projection of the answer on made" in page.locator("#chart svg").inner_html()
    page.locator("#search").fill("thought 3 2")
    assert _texts(page, "#results a")[0].endswith("rollout 3, turn 2, reasoning")
    page.locator("#search").fill("")
    page.evaluate("location.hash = '#plain/5/turn-2'")
    page.wait_for_selector('article[aria-label="plain, rollout 5, turn 2"]')
    lacking = page.locator('article[aria-label="plain, rollout 5, turn 2"]')
    assert lacking.locator(".value").inner_text() == "—"
    assert "no answer: the reply is reasoning only" in lacking.inner_text()
    assert "no answer within the limit, reasoning cut at the limit" in lacking.inner_text()


def test_reasoning_is_open_where_it_is_what_is_measured(watched: Watched, tmp_path: Path) -> None:
    planted(tmp_path / "store")
    line = ("report", "--store", str(tmp_path / "store"), "-o", str(tmp_path / "thoughts.html"), "--segment", "reasoning", "--json")
    page = watched.open(Path(drift(*line).json["file"]).as_uri())
    assert page.locator('article[aria-label="plain, rollout 0, turn 1"] details').get_attribute("open") is not None
    assert "of the reasoning" in page.locator("#subtitle").inner_text()
