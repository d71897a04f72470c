"""The gateway: REST routes, dashboard, command line, and `headrace serve`, which starts everything on one machine.

routes          read a request, call one room, answer; middleware runs around them
schemas, web    shapes of requests and answers; errors, pages, JSON
operations      what changes state: submission, forks, settings
views, events   what users see: records as objects, streams
models, files, grading, chat, auth
                what requests speak of
exporters       Prometheus, TensorBoard, Weights & Biases, JSON lines
service, cli    `headrace serve` and the other commands
"""
