"""
The learning benchmark: how well tasks are learnt in one subspace, beside the methods that one would use instead.

A *suite* says on which model which tasks are learnt, by which methods, with how many seeds. Its work is cut
into *cells*, such as one task by one method with one learning rate and one seed; each is a JSON file, so that a
benchmark that was interrupted goes on, and one that has grown computes what is new.

```
suite.toml     model, tasks, methods, seeds
  cells/       movies by a rank-8 LoRA at 2e-3, seed 0    -> scores, bytes, seconds
  summary.json what all cells say together
  report.html  the same, to be read
```
"""
