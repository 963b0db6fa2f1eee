"""What Celery does for us: one queue per worker, tickets in it, one task per item for Flower and for the result API.

The tickets only say "come and claim"; which item a worker gets, and whether it counts, is decided by the table of truth in
`distributed_comfy.state`.  This is the only package that imports Celery or kombu.
"""
