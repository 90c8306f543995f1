# PostgreSQL on the node that has the storage, and nowhere else. Why each block is there:
# docs/nomad.md, "The example, block by block".

job "postgres" {
  datacenters = ["dc1"]
  type        = "service"
  priority    = 80

  # Runs where the volume is local, and moves with it.
  constraint {
    attribute = "${meta.storage_role}"
    value     = "primary"
  }

  meta {
    # It is stopped and started with the role; a remount is none of its business.
    standfast_on_remount = "none"
  }

  group "db" {
    count = 1

    # Out of Consul first, then the stop: nobody is sent to one that is ending.
    shutdown_delay = "1s"

    # A node that is cut off ends it by itself, before it runs a second time elsewhere.
    disconnect {
      stop_on_client_after = "25s"
      replace              = true
    }

    # As soon as there is a node for it, for ever.
    reschedule {
      delay          = "5s"
      delay_function = "constant"
      unlimited      = true
    }

    # Two tries on the same node, then the scheduler decides anew.
    restart {
      attempts = 2
      interval = "2m"
      delay    = "5s"
      mode     = "fail"
    }

    # Two of it must never have the same directory open.
    update {
      max_parallel = 1
      canary       = 0
    }

    network {
      port "db" {
        static = 5432
      }
    }

    # The health check is what clients go by.
    service {
      name     = "postgres"
      port     = "db"
      provider = "consul"

      check {
        type     = "tcp"
        interval = "5s"
        timeout  = "2s"
      }
    }

    # In the client's configuration: host_volume "services" { path = "/data/services" }
    volume "services" {
      type   = "host"
      source = "services"
    }

    task "postgres" {
      driver = "docker"

      # Longer than a shutdown with a checkpoint takes; a demotion waits for it
      # (nomad.kill_timeout_limit at most).
      kill_timeout = "25s"
      kill_signal  = "SIGINT"

      config {
        image = "postgres:17"
        ports = ["db"]
      }

      volume_mount {
        volume      = "services"
        destination = "/services"
      }

      env {
        PGDATA            = "/services/postgres/data"
        POSTGRES_PASSWORD = "only-for-the-first-start"
      }

      resources {
        cpu    = 500
        memory = 512
      }
    }
  }
}
