"""
The pure core: values, and functions from values to values.

An order to read it in, each file one idea whose equations stand at its top:

1.  ``values``, ``linalg``: what everything is made of, and the few decompositions.
2.  ``merge``: the equations. ``newcomers`` makes weighted columns ``X`` of updates (``temporary``: ``F = V E + T tau``); ``sides``
    splits ``X = V C + Q S`` and does the small SVD; ``truncation`` and ``allocation`` choose ``k`` and ``m``; ``prepared`` puts them
    together; ``outcome`` is what comes of it.
3.  What becomes of tasks: ``table`` (``E <- U.T E``, owed until somebody reads), ``drift`` (how far each one moved), ``budget``
    (no further than this), ``account`` and ``removal`` (what taking one out leaves behind), ``staleness``.
4.  Between versions: ``rebase``, ``steps`` (``V_new = [V Q] U``, sent and checked).
5.  Beside merges: ``subspace`` and ``many`` (from adapters to bases, ``E = V.T F``), ``refinement``, ``fusion`` (of coordinators),
    ``measure`` (one update) and ``metrics`` (scores and bytes).
6.  For learning and serving: ``gradient`` (where a task begins) and ``routing`` (which task an input belongs to).
"""
