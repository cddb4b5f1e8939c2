"""Which upstream is asked: addresses, breakers, affinity and load. No sockets."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from simpleseg_server.engines.upstreams import LONGEST_BUSY_S, Address, Breaker, Upstream, choose

KEYS = [f"image {number}" for number in range(400)]


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def upstreams(*weights: float) -> list[Upstream]:
    """Admitted ones."""
    made = [Upstream(Address(f"http://gpu-{n}:8000", w)) for n, w in enumerate(weights)]
    for one in made:
        one.breaker.begin_trial()
        one.breaker.succeed()
    return made


@pytest.mark.parametrize(
    ("text", "url", "weight"),
    [
        ("http://a:8000", "http://a:8000", 1),
        ("http://a:8000/v1", "http://a:8000", 1),
        ("http://a:8000/v1/,0.5", "http://a:8000", 0.5),
        ("https://[::1]:8000/vllm/,10", "https://[::1]:8000/vllm", 10),
    ],
)
def test_addresses(text: str, url: str, weight: float) -> None:
    assert Address.parse(text) == Address(url, weight)


@pytest.mark.parametrize(
    "text",
    ["", "gpu:8000", "ftp://a", "http://", "http://a,", "http://a,0", "http://a,-1", "http://a,nan"]
    + ["http://a:99999", "http://a:0", "http://a:port"]
    + ["http://a,1e9", "http://a,1,2", "http://user:secret@a", "http://a?key=secret"],
)
def test_what_is_no_address_is_refused_without_repeating_it(text: str) -> None:
    with pytest.raises(ValueError, match="an upstream") as raised:
        Address.parse(text)
    assert "secret" not in str(raised.value)


def test_a_breaker_opens_after_failures_in_a_row_and_closes_by_a_trial() -> None:
    clock = Clock()
    breaker = Breaker(threshold=3, clock=clock)
    assert (breaker.state, breaker.wait_s) == ("open", 0)
    breaker.begin_trial()
    breaker.succeed()
    for _ in range(5):
        breaker.fail()
        breaker.fail()
        breaker.succeed()
    states = [breaker.state]
    for _ in range(3):
        breaker.fail()
        states.append(breaker.state)
    assert states == ["closed", "closed", "closed", "open"]
    first = breaker.wait_s
    assert 0.3 <= first <= 0.5
    clock.now += first
    assert breaker.wait_s == 0
    breaker.begin_trial()
    states = [breaker.state]
    breaker.succeed()
    states.append(breaker.state)
    assert states == ["half-open", "closed"]


def test_the_wait_grows_with_every_trial_that_fails_and_starts_anew_after_one_that_does_not() -> (
    None
):
    clock = Clock()
    breaker = Breaker(clock=clock)
    waits = []
    for _ in range(8):
        breaker.begin_trial()
        breaker.fail()
        waits.append(breaker.wait_s)
    assert waits[0] <= 0.5
    assert all(later > earlier for earlier, later in zip(waits[:4], waits[1:5], strict=True))
    assert 6 <= waits[-1] <= 8
    breaker.begin_trial()
    breaker.succeed()
    breaker.fail(decisive=True)
    assert breaker.wait_s <= 0.5


def test_what_was_under_way_when_it_opened_does_not_count() -> None:
    clock = Clock()
    [upstream] = upstreams(1)
    upstream.breaker = Breaker(clock=clock)
    upstream.breaker.begin_trial()
    upstream.breaker.succeed()
    upstream.fail(decisive=True)
    wait = upstream.breaker.wait_s
    for _ in range(20):
        upstream.fail()
    upstream.succeed()  # late, and no trial
    assert (upstream.breaker.state, upstream.breaker.wait_s) == ("open", wait)
    assert upstream.opened.is_set()


def test_an_image_goes_to_one_upstream_and_images_go_to_all() -> None:
    some = upstreams(1, 1, 1)
    chosen = [choose(some, key, ()) for key in KEYS]
    assert chosen == [choose(some, key, ()) for key in KEYS]
    for upstream in some:
        assert 0.23 * len(KEYS) < chosen.count(upstream) < 0.45 * len(KEYS)


def test_weights_are_shares_of_the_images() -> None:
    light, heavy = upstreams(1, 3)
    chosen = [choose([light, heavy], key, ()) for key in KEYS]
    assert 0.66 < chosen.count(heavy) / len(KEYS) < 0.84


@given(st.integers(2, 6), st.data())
def test_only_the_images_of_an_upstream_that_goes_move(count: int, data: st.DataObject) -> None:
    some = upstreams(*[1.0] * count)
    before = [choose(some, key, ()) for key in KEYS[:60]]
    gone = data.draw(st.sampled_from(some))
    gone.fail(decisive=True)
    for key, upstream in zip(KEYS, before, strict=False):
        after = choose(some, key, ())
        assert after is not gone
        assert after is upstream or upstream is gone


def test_an_upstream_with_more_than_its_share_passes_work_on() -> None:
    some = upstreams(1, 1)
    preferred = choose(some, "image", ())
    assert preferred is not None
    [other] = [one for one in some if one is not preferred]
    preferred.running = 3
    assert choose(some, "image", ()) is preferred
    preferred.running = 4
    assert choose(some, "image", ()) is other
    other.running = 4
    assert choose(some, "image", ()) is preferred
    preferred.running, other.running = 20, 12
    assert choose(some, "image", ()) is preferred
    preferred.running = 22
    assert choose(some, "image", ()) is other


@given(st.lists(st.sampled_from(KEYS[:3]), max_size=120))
def test_no_upstream_holds_much_more_than_its_share(keys: list[str]) -> None:
    """However few images the requests are about."""
    some = upstreams(1, 1, 2)
    for number, key in enumerate(keys, 1):
        chosen = choose(some, key, ())
        assert chosen is not None
        chosen.running += 1
        for one in some:
            assert one.running <= max(4, 1.25 * number * one.address.weight / 4 + 1)


def test_what_was_tried_or_is_out_is_not_asked_and_what_is_busy_is_asked_last() -> None:
    clock = Clock()
    some = upstreams(1, 1, 1)
    for one in some:
        one.clock = clock
    first, second, third = some
    assert choose(some, "image", [first, second]) is third
    assert choose(some, "image", some) is None
    first.refuse_for(5.0)
    second.refuse_for(None)
    assert all(choose(some, key, ()) is third for key in KEYS)
    third.fail(decisive=True)
    assert choose(some, "image", ()) in (first, second)  # busy, but nobody else is there
    clock.now += 1.0
    assert all(choose(some, key, ()) is second for key in KEYS)
    first.refuse_for(1e9)
    clock.now += LONGEST_BUSY_S
    assert not first.is_busy


def test_a_key_is_in_no_repr() -> None:
    assert "sesame" not in repr(Upstream(Address("http://a"), "sesame"))
