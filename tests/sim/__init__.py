"""Deterministic simulation: the real core and the real scripts of workers in a modelled machine (docs/simulation.md).

kernel      file systems, and calls on them that block
process     a worker: the real script, its threads and pipes
supervisor  the real core, its loop, its deadlines and its deaths
world       the machine: all of these, hosts, the journal, the clock
oracle      what must be true after each event
storm       actions from a seed; running, replaying and shrinking them
defects     planted defects that the storms must find
"""
