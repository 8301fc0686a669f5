"""
The operator's page: read-only, rendered by the coordinator, with nothing fetched from elsewhere.

::

    reading.py    records out of the running coordinator, for a principal who may see them
        ▼
    history.py    one point per version, thinned for the charts          pure
    view.py       records -> the page, as HTML                           pure
        ▼
    routes.py     which path shows what, to whom, with which headers
    server.py     starts and stops it inside the coordinator's loop

``static/`` holds the style sheet, the page's script and uPlot with its licence.
"""
