"""The outcome: a table for the terminal, a JSON file with every round, a picture."""

import json
from xml.sax.saxutils import escape

GROUPS = {"proxies": "Proxies, one route", "plugins": "One plugin on that route", "size": "Many routes, many consumers"}


def verdict(one):
    if not one["at_most"] or "ratio" not in one:
        return ""
    return "met" if one["ratio"]["median"] <= one["at_most"] else "MISSED"


def table(records, notes):
    columns = "{:28} {:>8} {:>15} {:>8} {:>5} {:>7} {:>7} {:>7} {:>7}  {}"
    lines = [columns.format("case", "CPU µs", "min–max", "req/s", "busy", "p50 µs", "p99 µs", "p99.9", "RSS MB",
                            "CPU per request beside")]
    for one in records:
        cpu = one["cpu_us"]
        lines.append(columns.format(
            one["name"], f"{cpu['median']:.2f}", f"{cpu['min']:.2f}–{cpu['max']:.2f}",
            f"{one['per_second']['median']:.0f}", f"{one['busy']['median']:.0%}", f"{one['p50_us']['median']:.0f}",
            f"{one['p99_us']['median']:.0f}", f"{one['p999_us']['median']:.0f}", f"{one['rss_mb']['median']:.1f}",
            beside(one)))
    lines += [f"{name:28} not measured: {why}" for name, why in notes.items()]
    idle = [one["name"] for one in records if one["busy"]["median"] < 0.9 and one["who"] != "upstream"]
    if idle:
        lines.append(f"Not busy all the time, so their req/s is the load's limit, not theirs: {', '.join(idle)}.")
    return "\n".join(lines)


def beside(one):
    if "ratio" not in one:
        return ""
    ratio = one["ratio"]
    text = f"{ratio['median']:.3f} × {one['beside']} ({ratio['min']:.3f}–{ratio['max']:.3f})"
    if one["beside"] != "floor" and "to_floor" in one:
        text += f", {one['to_floor']:.3f} × floor"
    if one["who"] == "portcullis" and one["beside"] == "floor" and "to_duties" in one:
        text += f", {one['to_duties']:.3f} × floor with duties"
    if one["at_most"]:
        text += f"; target ≤ {one['at_most']:.2f}: {verdict(one)}"
    return text


def figures_table(figures, notes):
    lines = []
    for one in figures:
        target = ""
        if one["target"] is not None:
            sign = "≥" if one["at_least"] else "≤"
            target = f"target {sign} {one['target']:g} {one['unit']}: {'met' if one['met'] else 'MISSED'}"
        lines.append(f"{one['name']:62} {one['value']:10.2f} {one['unit']:7} {target}")
    lines += [f"{name}: {why}" for name, why in notes.items()]
    return "\n".join(lines)


def write_json(file, document):
    with open(file, "w") as out:
        json.dump(document, out, indent=1)
        out.write("\n")


WIDTH, LABELS, BARS, ROW = 980, 220, 400, 24


def write_svg(file, records, title, subtitle):
    """Bars of CPU time per request, whiskers from the best to the worst round, the ratio beside each."""
    records = [one for one in records if one["who"] != "upstream"]
    if not records:
        return
    longest = max(one["cpu_us"]["max"] for one in records)
    parts, y = [], 64
    for group, heading in GROUPS.items():
        members = [one for one in records if one["group"] == group]
        if not members:
            continue
        parts.append(f'<text x="12" y="{y + 16}" class="heading">{escape(heading)}</text>')
        y += ROW
        for one in members:
            parts.append(bar(one, y, BARS / longest))
            y += ROW
        y += 10
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {y + 10}" font-family="sans-serif" '
        'font-size="13"><style>.heading{font-weight:bold}.faint{fill:#666}.over{fill:#b3261e}</style>'
        f'<rect width="{WIDTH}" height="{y + 10}" fill="#fff"/>'
        f'<text x="12" y="26" font-size="17" class="heading">{escape(title)}</text>'
        f'<text x="12" y="46" class="faint">{escape(subtitle)}</text>')
    with open(file, "w") as out:
        out.write(head + "\n" + "\n".join(parts) + "\n</svg>\n")


def bar(one, y, scale):
    cpu = one["cpu_us"]
    colour = {"floor": "#555f6d", "duties": "#555f6d", "portcullis": "#2563a8"}.get(one["who"], "#aab4c0")
    low, high = LABELS + cpu["min"] * scale, LABELS + cpu["max"] * scale
    middle = y + ROW / 2
    text = f"{cpu['median']:.1f} µs"
    if "ratio" in one:
        text += f"   {one['ratio']['median']:.2f} × {one['beside']}"
        if one["at_most"]:
            text += f" (target ≤ {one['at_most']:.2f})"
    style = "over" if verdict(one) == "MISSED" else "faint"
    return (
        f'<text x="{LABELS - 8}" y="{middle + 4:.1f}" text-anchor="end">{escape(one["name"])}</text>'
        f'<rect x="{LABELS}" y="{y + 3}" width="{cpu["median"] * scale:.1f}" height="{ROW - 6}" fill="{colour}"/>'
        f'<path d="M{low:.1f} {middle}H{high:.1f}M{low:.1f} {middle - 4}v8M{high:.1f} {middle - 4}v8" '
        'stroke="#111" fill="none"/>'
        f'<text x="{high + 8:.1f}" y="{middle + 4:.1f}" class="{style}">{escape(text)}</text>')
