"""The dashboards as Grafana reads them. Each file is one dashboard, of Grafana 11.6's form; later versions read it, too."""

import itertools
import json

from grafana_foundation_sdk.builders import dashboard, prometheus, timeseries
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models import dashboard as models

from .fleet_board import FLEET
from .machine_boards import CLUSTER, GPUS, STORAGE
from .panels import Board, Panel

BOARDS = (FLEET, GPUS, STORAGE, CLUSTER)
_SOURCE = models.DataSourceRef(type_val="prometheus", uid="${datasource}")
_TAG = "modelfleet"
_COLUMNS, _HEIGHT = 12, 8
"""Of a panel, in Grafana's grid of 24 columns."""


def files() -> dict[str, str]:
    """Name of each dashboard's file to its text."""
    return {f"{board.uid}.json": json.dumps(_document(board), cls=JSONEncoder, indent=1, sort_keys=True) + "\n" for board in BOARDS}


def _document(board: Board) -> models.Dashboard:
    built = (
        dashboard.Dashboard(f"Model fleet: {board.title}")
        .uid(board.uid)
        .tags([_TAG])
        .refresh("30s")
        .time("now-3h", "now")
        .with_variable(dashboard.DatasourceVariable("datasource").type("prometheus"))
        # From each to the others.
        .link(dashboard.DashboardLink("Model fleet").tags([_TAG]).as_dropdown(True).include_vars(True).keep_time(True))
    )
    if board.of_a_namespace:
        built.with_variable(_namespaces())
    ids = itertools.count(1)
    for title, panels in board.rows.items():
        built.with_row(dashboard.Row(title).id(next(ids)))
        for panel in panels:
            built.with_panel(_panel(panel).id(next(ids)))
    return built.build()


def _namespaces() -> dashboard.QueryVariable:
    """Of every fleet that this Prometheus reads; all of them also where its samples have no label of that name."""
    return (
        dashboard.QueryVariable("namespace")
        .datasource(_SOURCE)
        .query("label_values(api_server_gateways, namespace)")
        .refresh(models.VariableRefresh.ON_TIME_RANGE_CHANGED)
        .include_all(True)
        .all_value(".*")
    )


def _panel(panel: Panel) -> timeseries.Panel:
    built = timeseries.Panel().title(panel.title).unit(panel.unit).min(0).datasource(_SOURCE).span(_COLUMNS).height(_HEIGHT)
    if panel.about:
        built.description(panel.about)
    for index, (expression, legend) in enumerate(panel.lines.items()):
        built.with_target(prometheus.Dataquery().ref_id(chr(ord("A") + index)).expr(expression).legend_format(legend))
    return built
