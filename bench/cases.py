"""The cases under load, and what each may cost at most beside another."""

from dataclasses import dataclass, field


@dataclass
class Case:
    """One row of the report."""

    name: str
    # What runs: upstream, floor, duties (the floor with them), nginx, haproxy or portcullis.
    who: str = "portcullis"
    group: str = "proxies"
    routes: int = 1
    consumers: int = 0
    plugins: dict = field(default_factory=dict)
    access_log: bool = False
    # Whether requests bring tokens and a signature, too, which makes them longer.
    signed: bool = False
    # The row it is compared with, and the ratio of CPU per request that is the target.
    beside: str = ""
    at_most: float = 0.0
    expect: dict = field(default_factory=dict)


LIMIT_COUNT = {"count": 2_000_000_000, "time_window": 3600, "key": "remote_addr", "rejected_code": 429}
REFUSED = {"without_credentials": 401}

CASES = [
    Case("upstream", who="upstream"),
    Case("nginx", who="nginx", beside="floor"),
    Case("haproxy", who="haproxy", beside="floor"),
    Case("floor", who="floor"),
    # What the framework takes for what a gateway owes every request; see bench/floor.rs.
    Case("floor with duties", who="duties", beside="floor"),
    Case("plain", beside="floor", at_most=1.10),
    Case("plain + access log", access_log=True, beside="plain"),
    Case("key-auth", group="plugins", consumers=1, plugins={"key-auth": {}}, beside="plain", at_most=1.05,
         expect=REFUSED),
    Case("basic-auth", group="plugins", consumers=1, plugins={"basic-auth": {}}, beside="plain", at_most=1.05,
         expect=REFUSED),
    Case("plain, signed requests", group="plugins", signed=True),
    Case("jwt-auth HS256", group="plugins", signed=True, plugins={"jwt-auth": {"header": "X-Token-HS256"}},
         beside="plain, signed requests", at_most=1.20, expect=REFUSED),
    # The same token again and again: its signature is verified once, then remembered.
    Case("jwt-auth RS256", group="plugins", signed=True, plugins={"jwt-auth": {"header": "X-Token-RS256"}},
         beside="plain, signed requests", at_most=1.15, expect=REFUSED),
    Case("hmac-auth", group="plugins", signed=True, plugins={"hmac-auth": {}},
         beside="plain, signed requests", at_most=1.20, expect=REFUSED),
    Case("limit-count", group="plugins", plugins={"limit-count": LIMIT_COUNT}, beside="plain", at_most=1.10,
         expect={"headers": {"x-ratelimit-limit": None}}),
    Case("response-rewrite", group="plugins", beside="plain", at_most=1.05,
         plugins={"response-rewrite": {"headers": {"set": {"x-bench": "1"}}}},
         expect={"headers": {"x-bench": "1"}}),
    Case("10,000 routes", group="size", routes=10_000, beside="plain", at_most=1.05),
    Case("100,000 routes", group="size", routes=100_000, beside="plain", at_most=1.05),
    Case("key-auth, 10,000 consumers", group="size", consumers=10_000, plugins={"key-auth": {}},
         beside="key-auth", at_most=1.05, expect=REFUSED),
    Case("basic-auth, 10,000 consumers", group="size", consumers=10_000, plugins={"basic-auth": {}},
         beside="basic-auth", at_most=1.05, expect=REFUSED),
]
