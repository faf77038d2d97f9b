"""Deterministic simulation: the real core and the real scripts of workers in a modelled machine (docs/simulation.md).

kernel      file systems, and calls on them that block
process     a worker: the real script, its threads and pipes
writer      an application that is held around a freeze, and the worker of its writer
supervisor  the real core, its loop, its deadlines and its deaths
world       the machine: all of these, hosts, the journal, the clock
oracle      what must be true after each event
pairing     the same for writers, and for the instant that a host has set
actions     what can be done to a world, and the layouts
making      how a storm is made from a seed
storm       running, replaying and shrinking storms
defects     planted defects that the storms must find
"""
