"""Brings a job's results home: spool, order, the last stage's feed, and what is left in the user's folder."""
