#!/usr/bin/env python3
"""Makes surveylab-gateway.json, the dashboard: `dashboard.py` writes it, `dashboard.py --check` says whether it is up to date,
`dashboard.py --rules` prints its queries as Prometheus' rules, so that promtool can check them.

For Grafana 11 and 12. To be imported there, or put where its provisioning looks for dashboards.
"""

import json
import pathlib
import sys

TARGET = pathlib.Path(__file__).with_name("surveylab-gateway.json")
DATASOURCE = {"type": "prometheus", "uid": "${datasource}"}
OF = 'job=~"$job", instance=~"$instance"'
PREFIX = "surveylab_gateway_"

LEARNED = 'kind="learned"'
FAILED = 'code!="OK"'

RED, YELLOW, GREEN = "red", "yellow", "green"


def metric(name, labels=""):
    """A selector of the chosen gateways' series."""
    name = name if name.startswith("process_") else PREFIX + name
    return f"{name}{{{OF}{', ' + labels if labels else ''}}}"


def rate(name, by="", labels=""):
    return f"sum by ({by}) (rate({metric(name, labels)}[$__rate_interval]))"


def quantiles(name, by=""):
    """Median, 90th and 99th of a histogram."""
    group = f"le, {by}" if by else "le"
    legend = f"{{{{{by}}}}} " if by else ""
    return [
        (f"histogram_quantile({q}, sum by ({group}) (rate({metric(name + '_bucket')}[$__rate_interval])))", f"{legend}p{q * 100:g}")
        for q in (0.5, 0.9, 0.99)
    ]


def thresholds(*steps):
    return {"mode": "absolute", "steps": [{"color": color, "value": value} for color, value in steps]}


def panel(kind, title, targets, unit, description, width, custom=None, options=None, **defaults):
    return {
        "type": kind,
        "title": title,
        "description": description,
        "datasource": DATASOURCE,
        "fieldConfig": {"defaults": {"unit": unit, "custom": custom or {}, **defaults}, "overrides": []},
        "options": options or {},
        "targets": [
            {
                "refId": chr(ord("A") + number),
                "datasource": DATASOURCE,
                "editorMode": "code",
                "expr": expression,
                "legendFormat": legend,
                "range": True,
            }
            for number, (expression, legend) in enumerate(targets)
        ],
        "width": width,
    }


def stat(title, expression, unit="short", description="", steps=((GREEN, None),), legend="", mappings=()):
    return panel(
        "stat",
        title,
        [(expression, legend)],
        unit,
        description,
        4,
        options={
            "reduceOptions": {"calcs": ["lastNotNull"], "fields": "", "values": False},
            "colorMode": "background",
            "graphMode": "none",
            "textMode": "auto",
        },
        thresholds=thresholds(*steps),
        mappings=list(mappings),
    )


def graph(title, targets, unit="short", description="", width=8, stack=False):
    custom = {
        "drawStyle": "line",
        "lineWidth": 1,
        "fillOpacity": 20 if stack else 5,
        "showPoints": "never",
        "stacking": {"mode": "normal" if stack else "none", "group": "A"},
    }
    options = {
        "legend": {"displayMode": "list", "placement": "bottom", "showLegend": True},
        "tooltip": {"mode": "multi", "sort": "desc"},
    }
    return panel("timeseries", title, targets, unit, description, width, custom=custom, options=options, min=0)


def words(**texts):
    """Words in place of numbers."""
    options = {number.lstrip("_"): {"text": text, "index": at} for at, (number, text) in enumerate(texts.items())}
    return [{"type": "value", "options": options}]


ROWS = {
    "Now": [
        stat("State", f"min({metric('ready')})", steps=((RED, None), (GREEN, 1)), mappings=words(_0="not ready", _1="ready"),
             description="Of several gateways the worst."),
        stat("Ledger", f"min({metric('ledger_up')})", steps=((RED, None), (GREEN, 1)), mappings=words(_0="can't write", _1="writes")),
        stat("Learned rate", f"min({metric('rate_per_second', LEARNED)})", "reqps",
             "Requests a second that 429s have left of the configured rate."),
        stat("Pause left", f"max({metric('pause_seconds')})", "s", "After a 429.", ((GREEN, None), (YELLOW, 0.001))),
        stat("Doubts open", f"max({metric('doubts_open')})", description="Keys that wait for a person.",
             steps=((GREEN, None), (YELLOW, 1))),
        stat("Oldest doubt", f"max({metric('oldest_doubt_age_seconds')})", "s", "How long the oldest of them has been waiting.",
             ((GREEN, None), (YELLOW, 1), (RED, 86400))),
    ],
    "Calls": [
        graph("Calls by outcome", [(rate("outcomes_total", "outcome"), "{{outcome}}")], "reqps",
              "Calls and items of streams that went well.", stack=True),
        graph("Errors by reason", [(rate("calls_total", "reason", FAILED), "{{reason}}")], "reqps", stack=True),
        graph("Share of errors", [(f"{rate('calls_total', 'method', FAILED)} / {rate('calls_total', 'method')}", "{{method}}")],
              "percentunit", "Callers' own mistakes included."),
        graph("Calls by method", [(rate("calls_total", "method"), "{{method}}")], "reqps"),
        graph("Time of a call", quantiles("call_duration_seconds", "method"), "s", "Waits included."),
        graph("Streams and connections", [(f"sum({metric('streams_open')})", "streams"), (f"sum({metric('connections_open')})", "connections"),
              (rate("streams_total"), "streams begun a second"), (rate("connections_total"), "connections accepted a second")]),
    ],
    "SurveyLab": [
        graph("Requests by what they came to", [(rate("surveylab_requests_total", "answer"), "{{answer}}")], "reqps", stack=True),
        graph("Answers by HTTP status", [(rate("surveylab_responses_total", "status"), "{{status}}")], "reqps", stack=True),
        graph("Time of a request", quantiles("surveylab_request_duration_seconds"), "s"),
        graph("Rate", [(f"max by (kind) ({metric('rate_per_second')})", "{{kind}}"), (rate("surveylab_requests_total"), "sent")], "reqps",
              "What is allowed, what 429s have left of it, what is sent."),
        graph("Pauses", [(f"max({metric('pause_seconds')})", "left"),
              (f"max(rate({metric('paused_seconds_total')}[$__rate_interval]))", "share of the time"),
              (f"max(increase({metric('pauses_total')}[1h]))", "begun in an hour")]),
        graph("Breaker", [(f"max by (instance) ({metric('breaker_open')})", "{{instance}}")], "short",
              "1 while calls fail at once, as SurveyLab refuses every request."),
    ],
    "Waiting": [
        graph("Requests that wait", [(f"sum by (lane) ({metric('waiting_requests')})", "{{lane}}"),
              (f"sum({metric('max_waiting_requests')})", "at most")]),
        graph("Time waited", quantiles("wait_seconds", "lane"), "s", "Of requests that went out."),
        graph("Expected wait", [(f"max by (lane) ({metric('expected_wait_seconds')})", "{{lane}}")], "s",
              "Of a request that came now, by the rate alone."),
        graph("In flight", [(f"sum({metric('requests_in_flight')})", "in flight"), (f"sum({metric('max_requests_in_flight')})", "at most")], width=12),
        graph("Tokens", [(f"sum({metric('tokens_available')})", "there"), (f"max({metric('burst')})", "burst")], width=12,
              description="Requests that could go out at once."),
    ],
    "Ledger": [
        graph("Keys by state", [(f"max by (state) ({metric('ledger_keys')})", "{{state}}")],
              description="On PostgreSQL added and failed are estimates."),
        graph("Doubts", [(f"max({metric('doubts_open')})", "open")]),
        graph("Failed batches", [(rate("ledger_errors_total", "operation"), "{{operation}}")], "ops"),
        graph("Time of a commit", quantiles("ledger_commit_seconds"), "s"),
        graph("Steps that share a commit", quantiles("ledger_batch_size")),
        graph("Commits and steps", [(rate("ledger_batch_size_count"), "commits"), (rate("ledger_batch_size_sum"), "steps")], "ops"),
    ],
    "Process": [
        graph("CPU", [(f"rate({metric('process_cpu_seconds_total')}[$__rate_interval])", "{{instance}}")], "percentunit", "1 is one core."),
        graph("Memory", [(metric("process_resident_memory_bytes"), "{{instance}}"), (metric("process_virtual_memory_bytes"), "{{instance}} address space")],
              "bytes"),
        graph("Open files", [(metric("process_open_fds"), "{{instance}}"), (metric("process_max_fds"), "{{instance}} at most")]),
        graph("Threads", [(metric("process_threads"), "{{instance}}")], width=12),
        graph("Up for", [(f"time() - {metric('process_start_time_seconds')}", "{{instance}}")], "s", width=12),
    ],
    "Replicas": [
        graph("Replicas", [(f"max({metric('replicas')})", "alive"), (f"sum({metric('ready')})", "ready")],
              description="As the PostgreSQL ledger counts them."),
        graph("Sent by each", [(rate("surveylab_requests_total", "instance"), "{{instance}}")], "reqps", stack=True),
        graph("Versions", [(f"count by (version, commit, ledger) ({metric('build_info')})", "{{version}} {{commit}} {{ledger}}")], stack=True),
    ],
}


def laid_out():
    """The rows and their panels, with places and ids."""
    panels, top = [], 0
    for title, row in ROWS.items():
        panels.append({"type": "row", "title": title, "collapsed": False, "panels": [], "gridPos": {"x": 0, "y": top, "w": 24, "h": 1}})
        top, left, height = top + 1, 0, 0
        for one in row:
            one = dict(one)
            width = one.pop("width")
            if left + width > 24:
                top, left = top + height, 0
            height = 4 if one["type"] == "stat" else 8
            one["gridPos"] = {"x": left, "y": top, "w": width, "h": height}
            left += width
            panels.append(one)
        top += height
    return [{"id": number, **one} for number, one in enumerate(panels, 1)]


def variable(name, label, query, **more):
    return {
        "name": name,
        "label": label,
        "type": "query",
        "datasource": DATASOURCE,
        "definition": query,
        "query": {"query": query, "refId": name},
        "refresh": 2,
        "sort": 1,
        "includeAll": True,
        "multi": True,
        "current": {"selected": True, "text": ["All"], "value": ["$__all"]},
        **more,
    }


def dashboard():
    return {
        "uid": "surveylab-gateway",
        "title": "surveylab-gateway",
        "description": "How the gateway in front of SurveyLab's webhook does. The metrics are described in docs/metrics.md.",
        "tags": ["surveylab"],
        "schemaVersion": 39,
        "version": 1,
        "editable": True,
        "graphTooltip": 1,
        "refresh": "30s",
        "timezone": "browser",
        "time": {"from": "now-3h", "to": "now"},
        "annotations": {"list": []},
        "links": [],
        "templating": {
            "list": [
                {"name": "datasource", "label": "Data source", "type": "datasource", "query": "prometheus", "current": {}},
                variable("job", "Job", f"label_values({PREFIX}build_info, job)"),
                variable("instance", "Instance", f'label_values({PREFIX}build_info{{job=~"$job"}}, instance)'),
            ]
        },
        "panels": laid_out(),
    }


def rules():
    queries = [target["expr"] for panel in laid_out() for target in panel.get("targets", [])]
    # As Grafana fills them in.
    filled = [query.replace("$__rate_interval", "1m").replace("$job", ".+").replace("$instance", ".+") for query in queries]
    recorded = [{"record": f"query:number:{number}", "expr": query} for number, query in enumerate(filled)]
    # JSON is YAML.
    return json.dumps({"groups": [{"name": "dashboard", "rules": recorded}]}, indent=2)


def main():
    text = json.dumps(dashboard(), indent=2) + "\n"
    if sys.argv[1:] == ["--check"]:
        if TARGET.read_text() != text:
            sys.exit(f"{TARGET.name} is not what dashboard.py makes: run it")
        print(f"{TARGET.name} is up to date")
    elif sys.argv[1:] == ["--rules"]:
        print(rules())
    elif not sys.argv[1:]:
        TARGET.write_text(text)
    else:
        sys.exit("usage: dashboard.py [--check | --rules]")


main()
