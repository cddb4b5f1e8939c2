"""The server's metrics, from the registry that it exposes."""

from simpleseg_server.telemetry import Metrics


def metrics() -> str:
    rows = ["| metric | type | labels | meaning |", "|---|---|---|---|"]
    told = Metrics()
    # A family without samples does not tell its labels; the object behind it does.
    labels = {one._name: one._labelnames for one in vars(told).values() if hasattr(one, "_name")}
    for family in told.registry.collect():
        if not family.name.startswith("simpleseg_"):
            continue
        name = f"{family.name}_total" if family.type == "counter" else family.name
        names = ", ".join(f"`{label}`" for label in labels.get(family.name, ())) or "-"
        rows.append(f"| `{name}` | {family.type} | {names} | {family.documentation} |")
    return "\n".join(rows)
