//! `sealift whoami`.

use sealift_proto::v1::GetCallerRequest;

use crate::{
    args::Global,
    client::{client, connect, unary},
    error::{CliError, Exit},
    output::{
        self, Rows,
        text::{clean, stamp},
    },
};

pub async fn run(global: &Global) -> Result<Exit, CliError> {
    let mut client = client!(server_service_client, ServerServiceClient, connect(global).await?);
    let caller = client.get_caller(unary(GetCallerRequest {})).await?.into_inner();
    output::write(global.output, &caller, || {
        Rows::new(&["TENANT", "PRINCIPAL", "ROLE", "CERTIFICATE UNTIL"]).with([vec![
            clean(&caller.tenant),
            clean(&caller.principal),
            clean(&caller.role),
            stamp(caller.certificate_expire_time.as_ref()),
        ]])
    })?;
    Ok(Exit::Done)
}
