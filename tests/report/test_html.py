"""The page of a results folder: what is in it, and what a browser makes of it."""

import base64
import io
import json
import re
import shutil
from contextlib import contextmanager
from dataclasses import replace
from html.parser import HTMLParser

import pytest
from PIL import Image

from tests import ROOT
from tests.conftest import fake_record
from tests.report.test_report import images
from unlearnbench.report.data.board import boards
from unlearnbench.report.data.values import Measure
from unlearnbench.report.html import page
from unlearnbench.report.html.charts import Scale
from unlearnbench.report.html.grids import has_words
from unlearnbench.report.html.heatmaps import class_heatmap, shares
from unlearnbench.report.html.images import ImageBudget
from unlearnbench.store.records import ResultStore

HOSTILE = [
    "<script>window.hacked=1</script>", '"><img src=x onerror="window.hacked=1">', "{{ 7*7 }}{% raw %}",
    "</title></style>", "שלום עולם \u202eabc", "x" * 500, "a'b\"c`d", "]]>&lt;", "\\input{x} $&_#%",
]  # fmt: skip


def rendered(records, problems=()):
    return page(boards(records), problems)


def comparison():
    """Return records of three methods with pictures, three classes, a failure and a reference."""
    rows = [("original", "Original", "reference", 1.0, 1.0), ("alpha", "Alpha", "method", 90.0, 5.0),
            ("beta", "Beta", "method", 70.0, 3.0), ("gamma", "Gamma", "method", 99.0, 12.0)]  # fmt: skip
    found = [
        fake_record(name, c, title=title, role=role, ua=ua - c, fid=fid + c / 2, images=images(c))
        for name, title, role, ua, fid in rows for c in range(3)
    ]  # fmt: skip
    more = [fake_record(f"m{k}", c, ua=50.0 + k, fid=6.0 + k, images=images(c)) for k in range(4) for c in range(3)]
    return [*found, *more, fake_record("broken", 0, status="oom", traceback="Traceback\nMemoryError")]


class Outline(HTMLParser):
    """Collects what a page's markup holds, as a reader without script sees it."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.words, self._silent = [], [], 0
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self._silent += tag in ("script", "style")

    def handle_endtag(self, tag):
        self._silent -= tag in ("script", "style")

    def handle_data(self, data):
        if not self._silent:
            self.words.append(data)

    def all(self, tag):
        return [attrs for name, attrs in self.tags if name == tag]

    @property
    def text(self):
        return " ".join(" ".join(self.words).split())


def test_the_same_records_give_the_same_bytes():
    assert rendered(comparison()) == rendered(comparison())


def test_everything_can_be_read_without_the_script():
    outline = Outline(rendered(comparison(), ["a line is torn"]))
    for words in ("Alpha", "99.0", "oom", "it broke", "MemoryError", "a line is torn", "protocol-1", "Class by class"):
        assert words in outline.text
    assert not [attrs for tag, attrs in outline.tags if "hidden" in attrs and tag != "div"]
    pictures = [attrs for attrs in outline.all("span") if attrs.get("class", "").startswith("strip ")]
    assert len(pictures) == 2 * 3 * 8  # streams, classes, rows
    assert {attrs["aria-label"] for attrs in pictures} == {"8 samples"}
    assert outline.text.count("After forgetting") == 3  # which class, above rows and columns that say the rest


def test_nothing_in_it_comes_from_elsewhere():
    text = rendered(comparison())
    outline = Outline(text)
    links = [attrs.get(name, "") for _, attrs in outline.tags for name in ("src", "href", "action") if name in attrs]
    assert links
    assert all(link.startswith(("#", "data:")) for link in links)
    assert set(re.findall(r"url\((?!#)([^:)]*):", text)) == {"data"}
    assert "@import" not in text


def test_every_id_is_there_once_and_every_link_leads_somewhere():
    outline = Outline(rendered([*comparison(), fake_record("alpha", dataset="pictures")]))
    ids = [attrs["id"] for _, attrs in outline.tags if "id" in attrs]
    assert len(ids) == len(set(ids))
    assert {attrs["href"][1:] for attrs in outline.all("a")} <= set(ids)
    assert {attrs["data-pick"] for attrs in outline.all("select")} <= set(ids)
    assert {attrs["href"][1:] for attrs in outline.all("use")} <= set(ids)


def test_a_method_has_one_colour_on_every_board():
    records = [*comparison(), *(fake_record(name, dataset="pictures") for name in ("beta", "zeta"))]
    outline = Outline(rendered(records))
    followed = {}
    for key, name in re.findall(r'<tr data-m="(\d+)"><th scope=row><bdi>(.*?)</bdi>', rendered(records)):
        assert followed.setdefault(name, key) == key
    assert {"Alpha", "Beta", "Zeta"} <= set(followed)
    assert len(set(followed.values())) == len(followed)
    assert outline.all("svg")


def test_only_failures_are_shown_as_what_they_are():
    records = [fake_record("alpha", c, status=s) for c, s in ((0, "oom"), (1, "oom"), (2, "timeout"))]
    outline = Outline(rendered(records))
    assert "0 of 3 with numbers, 3 failed" in outline.text
    assert "oom it broke (2 cells)" in outline.text
    assert "3 cells have no numbers" in outline.text
    assert not outline.all("select")


def test_one_cell_is_enough():
    outline = Outline(rendered([fake_record()]))
    assert "1 of 1 with numbers" in outline.text
    assert "Alpha" in outline.text


def test_pictures_beyond_the_room_are_counted_not_dropped_silently():
    album = ImageBudget(limit=100)
    assert album.strip(images(0)["forget"]) is None
    broken = {"class": 0, "png": base64.b64encode(b"no picture").decode()}
    assert ImageBudget().strip(broken) is None
    assert ImageBudget().strip(images(0)["forget"]).n == 8


def test_a_picture_is_in_the_page_once():
    picture = images(0)["forget"]
    album = ImageBudget(limit=len(base64.b64decode(picture["png"])))
    assert album.strip(picture) == album.strip(picture)
    assert len(album.pictures) == 1
    same = [fake_record("alpha", c, images={"forget": picture, "retain": picture}) for c in range(3)]
    assert rendered(same).count(picture["png"]) == 1


def test_a_scale_turns_round_where_lower_is_better_and_keeps_within_its_ends():
    lower = Scale([1.0, 5.0], Measure("", "", "", "lower", "", ""), (0, 100))
    assert lower(1.0) > lower(5.0)
    wide = Scale([0.1, 100.0], Measure("", "", "", "higher", "", ""), (0, 100))
    assert wide.is_log
    assert wide(0.0) == 0
    assert wide(1e9) == 100
    share = Scale([99.9, 100.0], Measure("", "", "%", "higher", "", ""), (0, 100))
    assert not share.is_log
    assert abs(share(100.0) - share(99.9)) < 2  # a tenth of a point is no gulf
    assert all(0 <= place <= 100 for place, _ in [*lower.ticks(), *wide.ticks(), *share.ticks()])
    assert share.ticks()[-1] == (100.0, "100")  # the axis ends where shares do, as in the figures
    decades = Scale([0.0005, 20.0], Measure("", "", "", "higher", "", ""), (0, 100)).ticks()
    assert [words for _, words in decades] == ["0.001", "0.01", "0.1", "1", "10"]


def test_shades_are_stronger_where_better():
    percent, fid = Measure("", "", "%", "higher", "", ""), Measure("", "", "", "lower", "", "")
    assert shares([0.0, 50.0, None, 100.0], percent) == [0.0, 0.5, None, 1.0]
    assert shares([1.0, 3.0, float("inf")], fid) == [0.9, 0.1, None]
    assert shares([2.0, 2.0], fid) == [0.5, 0.5]
    seconds = Measure("", "", "s", "lower", ".2f", "")
    assert shares([1e-6, 3e-5], seconds) == [0.5, 0.5]  # both are shown as 0.00


def test_a_stronger_colour_is_called_better_only_where_a_metric_has_a_direction():
    board = boards(comparison())["digits"]
    measure = board.metrics[0]
    neutral = replace(measure, better="neither")
    assert [class_heatmap(board, m).stronger for m in (measure, neutral)] == ["better", "larger"]


def test_a_single_forget_class_is_not_shown_twice():
    for classes, headers in ((1, ["0"]), (2, ["0", "1", "mean"])):
        board = boards([fake_record("alpha", c) for c in range(classes)])["digits"]
        assert [column.text for column in class_heatmap(board, board.metrics[0]).columns] == headers


def test_columns_of_words_are_flush_left():
    assert has_words(["30x faster than SA", "45 % less memory", ""])
    assert has_words(["front", "dominated"])
    for texts in (["10/10", "3/10"], ["17.71 ± 1.29", "-"], ["n/a", "12"], ["40", "20", "never in 80"], [], [""]):
        assert not has_words(texts)


def test_the_page_of_the_digits_is_small_enough_to_send():
    records = [r for r in ResultStore(ROOT / "results").read().records if r.cell.dataset == "digits"]
    assert len(records) > 100
    text = rendered(records)
    assert len(text.encode()) < 900_000
    assert rendered(records) == text


def test_the_setup_is_said_once_per_board():
    text = Outline(rendered([*comparison(), fake_record("alpha", dataset="pictures")])).text
    assert text.count("Setup: ") == 2
    assert text.count("Wilson's") == 2  # the intervals, in no caption
    assert text.count("guidance w ") == 2


def test_headers_say_title_unit_direction_and_samples():
    outline = Outline(rendered(comparison()))
    found = {attrs["title"] for attrs in outline.all("th") if "title" in attrs}
    assert {"UA in %: higher is better; n = 100 samples per cell", "RTE in s: lower is better"} <= found


def test_notes_name_their_dataset_where_there_are_several_boards():
    foreign = [fake_record(name, dataset="pictures", device=name) for name in ("a", "b")]
    alone, both = (Outline(rendered(found)).text for found in (foreign, [*comparison(), *foreign]))
    note = "these records rest on 2 devices"
    assert note in alone
    assert f"pictures: {note}" not in alone
    assert f"pictures: {note}" in both
    assert both.count(note) == 1


@contextmanager
def browser(width=1280, height=900, **media):
    webdriver = pytest.importorskip("selenium.webdriver", reason="needs selenium")
    programs = shutil.which("chromium"), shutil.which("chromedriver")
    if None in programs:
        pytest.skip("needs chromium and chromedriver")
    options = webdriver.ChromeOptions()
    options.binary_location = programs[0]
    for word in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"):
        options.add_argument(word)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(programs[1]))
    size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
    driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    features = [{"name": name, "value": value} for name, value in media.items()]
    driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
    try:
        yield driver
    finally:
        driver.quit()


@pytest.fixture(scope="module")
def opened(tmp_path_factory):
    """A browser with the page of a comparison on two boards."""
    path = tmp_path_factory.mktemp("page") / "report.html"
    path.write_text(
        rendered([*comparison(), fake_record("alpha", dataset="pictures", title="Alpha")]), encoding="utf-8"
    )
    with browser() as driver:
        driver.get(path.as_uri())
        yield driver


def texts(driver, selector):
    return driver.execute_script(
        "return [...document.querySelectorAll(arguments[0])].map(e => e.innerText.trim())", selector
    )


def network(driver, event):
    messages = [json.loads(entry["message"])["message"] for entry in driver.get_log("performance")]
    return [message["params"] for message in messages if message["method"] == f"Network.{event}"]


def requests(driver):
    return {event["request"]["url"] for event in network(driver, "requestWillBeSent")}


SUMMARY = "#board-digits-summary table.grid"


def test_a_browser_opens_it_without_errors_or_requests(opened):
    assert {url.split(":")[0] for url in requests(opened)} <= {"file", "data"}
    assert opened.get_log("browser") == []


def test_a_click_on_a_header_sorts_and_a_third_one_undoes_it(opened):
    names, numbers = f"{SUMMARY} tbody th", f"{SUMMARY} tbody td:nth-child(4)"
    before = texts(opened, names)
    press = f"document.querySelector('{SUMMARY} thead th:nth-child(4) button').click()"
    opened.execute_script(press)
    shown = [float(text.split()[0]) for text in texts(opened, numbers) if text[0].isdigit()]
    assert shown == sorted(shown)  # FID: lower is better, the best first
    assert texts(opened, names)[-1] == "Broken"  # words stand below numbers
    assert texts(opened, f"{SUMMARY} th[aria-sort]") == ["FID\u00a0↓"]
    opened.execute_script(press)
    shown = [float(text.split()[0]) for text in texts(opened, numbers) if text[0].isdigit()]
    assert shown == sorted(shown, reverse=True)
    assert texts(opened, names)[-1] == "Broken"
    opened.execute_script(press)
    assert texts(opened, names) == before


def test_a_filter_leaves_the_rows_that_have_all_its_words(opened):
    from selenium.webdriver.common.by import By

    field = opened.find_element(By.CSS_SELECTOR, "#board-digits-summary input[type=search]")
    field.send_keys("alPHA 3/3")
    assert texts(opened, f"{SUMMARY} tbody tr:not([hidden]) th") == ["Alpha"]
    field.clear()
    field.send_keys("x\ue003")  # and a backspace, so that the field says that it changed
    assert len(texts(opened, f"{SUMMARY} tbody tr:not([hidden]) th")) == 9


def test_the_selector_shows_one_forget_class(opened):
    from selenium.webdriver.common.by import By
    from selenium.webdriver.support.ui import Select

    captions = "#board-digits-album [data-choice]:not([hidden]) caption"
    assert texts(opened, captions) == ["After forgetting 0"]
    Select(opened.find_element(By.CSS_SELECTOR, "[data-pick=board-digits-album]")).select_by_visible_text("1")
    assert texts(opened, captions) == ["After forgetting 1"]
    heats = "#board-digits-heats [data-choice]:not([hidden])"
    assert len(texts(opened, heats)) == 1


def test_the_keyboard_follows_a_method_through_every_figure(opened):
    from selenium.webdriver.common.by import By
    from selenium.webdriver.common.keys import Keys

    name = next(
        e for e in opened.find_elements(By.CSS_SELECTOR, f"{SUMMARY} tbody th button") if e.text.strip() == "Gamma"
    )
    name.send_keys(Keys.ENTER)
    assert opened.execute_script("return document.body.classList.contains('following')")
    pressed = (
        "[...document.querySelectorAll('#board-digits .legend button[aria-pressed=true]')].map(b => b.innerText.trim())"
    )
    assert opened.execute_script(f"return {pressed}") == ["Gamma"]
    assert set(texts(opened, "#board-digits tr.on > th")) == {"Gamma"}
    assert opened.execute_script("return document.querySelectorAll('#board-digits .chart .on').length") >= 3
    opened.switch_to.active_element.send_keys(Keys.ESCAPE)
    assert not opened.execute_script("return document.body.classList.contains('following')")


def test_pointing_at_a_mark_shows_its_numbers(opened):
    from selenium.webdriver.common.action_chains import ActionChains
    from selenium.webdriver.common.by import By

    mark = opened.find_element(By.CSS_SELECTOR, "#board-digits-summary .chart g[tabindex]")
    opened.execute_script("arguments[0].scrollIntoView({block: 'center'})", mark)
    ActionChains(opened).move_to_element(mark.find_element(By.CSS_SELECTOR, "use")).perform()
    assert re.match(r"\w+: FID [\d.]+.*; UA [\d.]+%", texts(opened, "#tip")[0])
    mark.find_element(By.XPATH, "./following-sibling::*[@tabindex]").send_keys("")  # focus says it as well
    assert re.match(r"\w+: FID", texts(opened, "#tip")[0])


def test_one_board_at_a_time_and_the_address_says_which(opened):
    shown = "return [...document.querySelectorAll('.board')].filter(b => !b.hidden).map(b => b.id)"
    assert opened.execute_script(shown) == ["board-digits"]
    opened.execute_script("location.hash = '#board-pictures-appendix'")
    opened.execute_async_script("setTimeout(arguments[0], 50)")
    assert opened.execute_script(shown) == ["board-pictures"]
    opened.execute_script("location.hash = '#board-digits'")
    opened.execute_async_script("setTimeout(arguments[0], 50)")
    assert opened.execute_script(shown) == ["board-digits"]


def test_hostile_text_is_text(tmp_path):
    records = [
        fake_record(f"m{k}", title=text, ua=50.0 + k, fid=5.0 + k, images=images(0), more={"extra": {"title": text}},
                    overrides={text: text})
        for k, text in enumerate(HOSTILE)
    ]  # fmt: skip
    broken = fake_record("broken", 0, status="failed", traceback="</pre><script>window.hacked=1</script>")
    path = tmp_path / "report.html"
    path.write_text(rendered([*records, broken], HOSTILE), encoding="utf-8")
    with browser(width=360, height=700) as driver:
        driver.get(path.as_uri())
        assert driver.execute_script("return window.hacked") is None
        assert driver.get_log("browser") == []
        assert {url.split(":")[0] for url in requests(driver)} <= {"file", "data"}
        assert driver.execute_script("return document.querySelectorAll('script').length") == 1
        columns = "return [...document.querySelector('table.grid').rows].map(r => r.cells.length)"
        assert len(set(driver.execute_script(columns))) == 1
        assert driver.execute_script("return document.documentElement.scrollWidth") <= 360
        names = driver.execute_script(
            "return [...document.querySelectorAll('.legend li bdi')].map(e => e.textContent)"
        )  # fmt: skip
        assert any(name.startswith(HOSTILE[0]) for name in names)


def test_a_script_that_got_in_would_not_run(tmp_path):
    path = tmp_path / "report.html"
    text = rendered([fake_record()])
    path.write_text(text.replace("</main>", "<script>window.hacked=1</script><img src=https://x.invalid/a></main>"))
    with browser() as driver:
        driver.get(path.as_uri())
        assert driver.execute_script("return window.hacked") is None
        assert driver.execute_script("return document.documentElement.classList.contains('js')")
        assert [event.get("blockedReason") for event in network(driver, "loadingFailed")] == ["csp"]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_stands_out_from_its_ground(tmp_path, scheme):
    path = tmp_path / "report.html"
    path.write_text(rendered(comparison()), encoding="utf-8")
    with browser(**{"prefers-color-scheme": scheme}) as driver:
        driver.get(path.as_uri())
        for selector in ("body", ".facts dt", ".heat td", "a", "td small"):
            assert (driver.execute_script(CONTRAST, selector) or 0) >= 4.5, selector


@pytest.fixture
def written(tmp_path):
    """The page of a comparison on two boards, with a figure."""
    swept = {f"setting_{k}": "x" * 9 for k in range(4)}
    long = fake_record("long", 0, settings=swept, overrides=swept, images=images(0))
    shown = boards([*comparison(), long, fake_record("alpha", dataset="pictures", title="Alpha")])
    figure = io.BytesIO()
    Image.new("RGB", (1200, 300), "white").save(figure, "PNG")
    path = tmp_path / "report.html"
    path.write_text(page(shown, [], lambda name: {"sweep": {"png": figure.getvalue()}}), encoding="utf-8")
    return path.as_uri()


def test_pictures_are_readable_on_dark_paper(written):
    with browser(**{"prefers-color-scheme": "dark"}) as driver:
        driver.get(written)
        style = "return getComputedStyle(document.querySelector(arguments[0]))[arguments[1]]"
        assert driver.execute_script(style, "body", "backgroundColor") == "rgb(20, 24, 28)"
        assert driver.execute_script(style, ".still img", "backgroundColor") == "rgb(255, 255, 255)"
        assert driver.execute_script(style, ".strip i", "borderTopWidth") == "1px"  # a frame around each sample
        assert driver.execute_script(style, ".strip i", "imageRendering") == "pixelated"
        assert driver.execute_script(WIDTH, ".strip i") >= 64


@pytest.mark.parametrize("width", [360, 700, 1280])
def test_a_page_is_as_wide_as_its_window(written, width):
    with browser(width=width, height=800) as driver:
        driver.get(written)
        driver.execute_script("for (const hidden of document.querySelectorAll('details')) hidden.open = true")
        assert driver.execute_script("return document.documentElement.scrollWidth") <= width
        assert driver.execute_script(WIDTH, ".chart svg") <= width
        assert driver.execute_script(WIDTH, ".strip i") >= 40
        outside = driver.execute_script("""
          return [...document.querySelectorAll('table, img')].filter(e => !e.closest('.scroll')
            && e.getBoundingClientRect().right > innerWidth).length""")
        assert outside == 0  # what is wider scrolls in a box


WIDTH = "return document.querySelector(arguments[0]).getBoundingClientRect().width"


def test_print_opens_captions_and_leaves_out_navigation(written):
    visible = "return document.querySelector(arguments[0]).checkVisibility()"
    with browser(**{"prefers-color-scheme": "dark"}) as driver:
        driver.get(written)
        assert not driver.execute_script(visible, "figcaption details p")
        features = [{"name": "prefers-color-scheme", "value": "dark"}]
        driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print", "features": features})
        for shown in ("figcaption details p", ".setup dl", "#board-digits-summary table"):
            assert driver.execute_script(visible, shown), shown
        for hidden in (".boards", ".sections", ".theme", ".filter"):
            assert not driver.execute_script(visible, hidden), hidden
        chosen = "return [...document.querySelectorAll(arguments[0])].every(e => e.checkVisibility())"
        for every in (".board", "[data-choice] table"):  # paper has nothing to choose with
            assert driver.execute_script(chosen, every), every
        style = "return getComputedStyle(document.querySelector(arguments[0]))[arguments[1]]"
        assert driver.execute_script(style, "body", "backgroundColor") == "rgb(255, 255, 255)"  # no dark paper
        assert driver.execute_script(style, ".heat td[class]", "printColorAdjust") == "exact"
        assert driver.execute_script(style, "tbody tr", "breakInside") == "avoid"


def test_a_header_says_what_it_is_to_pointer_and_keyboard(opened):
    from selenium.webdriver.common.by import By

    button = opened.find_element(By.CSS_SELECTOR, f"{SUMMARY} thead th:nth-child(4) button")
    opened.execute_script("arguments[0].scrollIntoView({block: 'center'}); arguments[0].focus()", button)
    assert texts(opened, "#tip") == ["FID: lower is better; n = 100 samples per cell. Press to sort"]


CONTRAST = """
  const paint = document.createElement('canvas').getContext('2d', {willReadFrequently: true});
  const rgb = (colour) => {
    paint.clearRect(0, 0, 1, 1); paint.fillStyle = colour; paint.fillRect(0, 0, 1, 1);
    return [...paint.getImageData(0, 0, 1, 1).data];
  };
  const light = (colour) => rgb(colour).slice(0, 3).map(v => v / 255)
    .map(v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
    .reduce((s, v, k) => s + v * [.2126, .7152, .0722][k], 0);
  const ground = (e) => {
    for (; e; e = e.parentElement) { const c = getComputedStyle(e).backgroundColor; if (rgb(c)[3] === 255) return c; }
    return 'white';
  };
  return Math.min(...[...document.querySelectorAll(arguments[0])].map(e => {
    const [a, b] = [light(getComputedStyle(e).color), light(ground(e))].sort((x, y) => y - x);
    return (a + 0.05) / (b + 0.05);
  }));
"""
