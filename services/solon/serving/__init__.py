"""Everything that a gRPC process needs and no role knows.

``process`` runs a role from its command line to its exit code; ``server`` binds the socket;
``guard`` stands before every call (request ids, rules, deadlines, errors, the log line);
``convert`` is where protobuf stops. Knows nothing of policies, critics or judges.
"""
