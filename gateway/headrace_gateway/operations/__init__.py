"""Operations that change state: submission, forks, changes of settings, draining of workers, removal of models."""
