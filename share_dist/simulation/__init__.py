"""
Thousands of simulated workers before one real coordinator: `share-dist simulate`.

Time is virtual: how long somebody learns, is away or takes to send is drawn from one seed. The
coordinator is a process of its own, every pull and push goes over real gRPC, every merge is a real one, and
what a push takes is measured and counted in. What is pushed was recorded from real training;
beyond what was recorded it is synthetic, and labelled so wherever it is told.

::

    scenario   what is simulated            population   who works where, how fast, when
    recorded   adapters from folders        updates      the n-th update of a run
    link       the coordinator's process    session      one run: what is asked, and its trace
    asynchronous, rounds: who does what when         moments, report: what came of it
"""
