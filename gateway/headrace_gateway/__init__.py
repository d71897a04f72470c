"""The gateway: REST routes, dashboard, command line, and `headrace serve`, which starts everything on one machine.

routes          parse a request, call one of the packages below, answer; middleware runs around them
schemas, web    types of requests and responses; errors, pagination, JSON
operations      change state: submission, forks, settings
views, events   read state: records as response objects, event streams
models, files, grading, chat, auth
                the subjects of requests
exporters       Prometheus, TensorBoard, Weights & Biases, JSON lines
service, cli    `headrace serve` and the other commands
"""
